"""A decoder that answers from a table: what the harness tests need instead of a trained model."""

from dataclasses import dataclass, field


@dataclass
class TableAnswer:
    """A Decoded made by hand."""

    tokens: list[int]
    revealed_at: list[int]
    confidence: list[float]
    target_forwards: int
    counters: dict = field(default_factory=dict)


class TableDecoder:
    """Answers prompts from a table of texts; remembers every call."""

    def __init__(self, tokenizer, table: dict[str, str], forwards: int = 10) -> None:
        self.tokenizer, self.forwards, self.calls = tokenizer, forwards, []
        self.table = {tuple(self.prompt(question)): answer for question, answer in table.items()}

    def prompt(self, question: str) -> list[int]:
        turns = [{"role": "user", "content": question}]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def __call__(self, prompts: list[list[int]], max_new_tokens: int) -> list[TableAnswer]:
        self.calls.append((prompts, max_new_tokens))
        answers = []
        for prompt in prompts:
            text = self.table.get(tuple(prompt), "")
            tokens = [*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id]
            steps = [1 + index % self.forwards for index in range(len(tokens))]
            answers.append(
                TableAnswer(tokens, steps, [0.9] * len(tokens), self.forwards, {"target_forwards": self.forwards})
            )
        return answers
