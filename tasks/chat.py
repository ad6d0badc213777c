"""Talks to any checkpoint: several turns, the answers unmasking as they are decoded, coloured by confidence.

    python -m tasks.chat                                            # the fine-tuned diffusion model
    python -m tasks.chat data/models/tune_cap@threshold=0.8         # another model, another policy
    python -m tasks.chat tune_cap+draft:4 --trace trace.html        # speculative; afterwards open trace.html
    python -m tasks.chat --compare finetune_ar finetune_diffusion tune_cap -q "Who is older, Mira or Tom?"
    python -m tasks.chat --compare threshold=0.9 tokens_per_step=8  # one model under two policies
    python -m tasks.chat < questions.txt > answers.txt              # a turn a line, plain text

Who answers is written MODEL@POLICY+GUESSES, each part optional. MODEL is a checkpoint folder, a name under data/models, or
`registered` (the registry's champion). POLICY is a decoding policy with its settings (hybrid,threshold=0.95,steps=8); a causal
model writes from left to right whatever the policy. GUESSES make decoding speculative: stale, draft or both,
with a depth (draft:4) or draft:auto, which follows the measured acceptance.

Ctrl-C ends an answer; Ctrl-D or /quit ends the chat, /new begins another conversation.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.environment import quiet

if TYPE_CHECKING:
    from rich.console import Console

    from tasks.chatting.trace import Turn
    from tasks.chatting.voices import Voice

BAD_INPUT, INTERRUPTED = 2, 130
PACE_SECONDS = 0.04


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0; 2 after one message on stderr about what a person can mend; 130 when stopped outside an answer."""
    quiet()
    options = parse(arguments)
    try:
        return run(options)
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stdout = None  # type: ignore[assignment]
        return 0
    except (ValueError, OSError) as error:
        print(f"chat: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("chat: stopped", file=sys.stderr)
        return INTERRUPTED


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.chat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("voice", nargs="?", help="who answers (default: finetune_diffusion, or else `registered`)")
    parser.add_argument("--compare", nargs="+", metavar="VOICE", help="several that answer side by side")
    parser.add_argument("-q", "--question", help="ask this and end")
    parser.add_argument("--system", help="a system message that opens every conversation")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a page on which the answers appear again")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the most likely tokens (default)")
    parser.add_argument("--top-p", type=float, help="draw from the most likely tokens that together reach this share")
    parser.add_argument("--seed", type=int, default=0, help="of the draws: the same seed gives the same answers")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the weights")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest answer (default 128)")
    parser.add_argument(
        "--pace", type=float, default=PACE_SECONDS,
        help=f"seconds a step stays on the screen at least, not counted in tokens/s (default {PACE_SECONDS}; 0: full speed)",
    )  # fmt: skip
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """The whole chat."""
    check(options)
    from rich.console import Console

    from model.samplers.sampling import Sampling
    from tasks.chatting.screen import legend
    from tasks.chatting.voices import open_voices

    sampling = Sampling(temperature=options.temperature, top_p=options.top_p, seed=options.seed)
    voices = open_voices(options.compare or [options.voice or ""], sampling, options.precision)
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    if console.is_terminal:
        console.print(legend())
        console.print(f"{'; '.join(voice.title for voice in voices)}. /new, /quit; Ctrl-C ends an answer", style="dim")
    chat = Chat(voices, console, options)
    failed, is_talk = False, options.question is None and sys.stdin.isatty()
    for question in [options.question] if options.question is not None else questions():
        try:
            chat.turn(question)
        except ValueError as error:
            failed = True
            print(f"chat: {error}", file=sys.stderr)
        except KeyboardInterrupt:  # a second Ctrl-C, which did not wait for the current forward
            if not is_talk:
                raise
            print("chat: the answer is given up", file=sys.stderr)
    return BAD_INPUT if failed and not is_talk else 0


def check(options: argparse.Namespace) -> None:
    """ValueError for what can be known to be wrong before anything is loaded."""
    if options.voice is not None and options.compare:
        raise ValueError(f"say who answers once: {options.voice!r} belongs after --compare")
    if options.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens is {options.max_new_tokens}; it must be at least 1")
    if options.pace < 0:
        raise ValueError(f"--pace is {options.pace}; it must be 0 or more seconds")
    if options.trace:
        from tasks.chatting.trace import check_target

        check_target(options.trace)


def questions() -> Iterator[str]:
    """What is typed, line by line, until Ctrl-D or /quit; a Ctrl-C clears the line, two in a row end the chat."""
    typed = sys.stdin.isatty()
    if typed:
        import readline  # noqa: F401  (arrow keys and history in input)
    interrupted = False
    while True:
        try:
            if typed:
                print("> ", end="", file=sys.stderr, flush=True)
            line = input()
        except EOFError:
            return
        except KeyboardInterrupt:
            if interrupted or not typed:
                raise
            interrupted = True
            print("\n(Ctrl-D ends the chat)", file=sys.stderr)
            continue
        interrupted = False
        if line.strip() == "/quit":
            return
        if line.strip():
            yield line.strip()


class Chat:
    """A conversation with one or several voices, each of which remembers its own answers."""

    def __init__(self, voices: list["Voice"], console: "Console", options: argparse.Namespace) -> None:
        self.voices, self.console, self.options = voices, console, options
        self.turns: list[Turn] = []
        self.begin()

    def begin(self) -> None:
        """A new conversation."""
        system = [{"role": "system", "content": self.options.system}] if self.options.system else []
        self.opening = len(system)
        self.histories = [list(system) for _ in self.voices]

    def turn(self, question: str) -> None:
        """One question to every voice. ValueError where it is empty or too long; the conversation is then as before."""
        from tasks.chatting.screen import Screen
        from tasks.chatting.trace import Turn, write_trace
        from tasks.chatting.unmasking import speak

        if question == "/new":
            self.begin()
            return
        prompts = [self._prompt(number, question) for number in range(len(self.voices))]
        if not self.console.is_terminal or self.options.question is not None:
            self.console.print(f"> {question}", markup=False, style="bold")
        turn = Turn(question, [])
        with Screen(self.console, [voice.title for voice in self.voices], self.options.pace) as screen:
            for number, (voice, (prompt, room)) in enumerate(zip(self.voices, prompts, strict=True)):
                answer = speak(voice, prompt, room, lambda pieces, number=number: screen.show(number, pieces))
                screen.finish(number, answer)
                turn.answers.append(answer)
        for history, answer in zip(self.histories, turn.answers, strict=True):
            history += [{"role": "user", "content": question}, {"role": "assistant", "content": answer.text}]
        self.turns.append(turn)
        if self.options.trace:
            write_trace(self.options.trace, self.turns)

    def _prompt(self, number: int, question: str) -> tuple[list[int], int]:
        """Prompt and answer's room. The oldest exchanges are forgotten where the context is too small for all."""
        if not question.strip():
            raise ValueError("the question is empty; type one, or give it in quotes after -q")
        assistant, history, forgotten = self.voices[number].assistant, self.histories[number], 0
        while True:
            prompt = assistant.prompt([*history, {"role": "user", "content": question}])
            room = min(assistant.room(prompt), self.options.max_new_tokens)
            if room == self.options.max_new_tokens or len(history) == self.opening:
                break
            del history[self.opening : self.opening + 2]
            forgotten += 1
        if room < 1:
            raise ValueError(
                f"the question has {len(prompt)} tokens, and {self.voices[number].title} reads at most "
                f"{len(prompt) + assistant.room(prompt)} with its answer: shorten it"
            )
        if forgotten:
            print(f"chat: the {forgotten} oldest exchange(s) no longer fit and are forgotten", file=sys.stderr)
        return prompt, room


if __name__ == "__main__":
    sys.exit(main())
