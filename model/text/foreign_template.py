"""Conversations in the chat format of a tokenizer that is not ours: which ids, and which of them the assistant said."""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Conversation = list[dict[str, str]]
Span = tuple[int, int]  # characters of the rendered text
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def encode_foreign(tokenizer: "PreTrainedTokenizerFast", conversation: Conversation) -> tuple[list[int], list[bool]]:
    """(ids, graded) through the tokenizer's chat template; ValueError where it has none or rewrites earlier turns.

    Graded EOS is appended where the template closes the last answer with another token or with none.
    """
    ids, graded = _encode(tokenizer, conversation)
    last = max((place for place, flag in enumerate(graded) if flag), default=None)
    if last is not None and tokenizer.eos_token_id not in ids[last:]:
        return [*ids, tokenizer.eos_token_id], [*graded, True]
    return ids, graded


def _encode(tokenizer: "PreTrainedTokenizerFast", conversation: Conversation) -> tuple[list[int], list[bool]]:
    """(ids, graded) exactly as the template says.

    Special-token strings that people typed are broken by a character nobody used before the template is rendered, so that only
    the template's own become special tokens; the character is taken out again before the text between them is encoded.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"tokenizer {tokenizer.name_or_path} has no chat_template, so conversations cannot be encoded: take the instruct "
            "version of the model, add a chat_template to tokenizer_config.json, or use `tokenize.tokenizer: train`"
        )
    specials = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    special = re.compile("|".join(re.escape(token) for token in sorted(specials, key=len, reverse=True)) or r"(?!)")
    typed = any(special.search(message["content"]) for message in conversation)
    if not typed and _GENERATION.search(tokenizer.chat_template):
        out = tokenizer.apply_chat_template(conversation, return_dict=True, return_assistant_tokens_mask=True)
        return out["input_ids"], [bool(flag) for flag in out["assistant_masks"]]
    if not typed:
        rendered = _render(tokenizer, conversation, False)
        encoding = tokenizer.backend_tokenizer.encode(rendered, add_special_tokens=False)
        spans = list(_answer_spans(tokenizer, conversation, rendered, special))
        return encoding.ids, [_inside(begin, spans) for begin, _ in encoding.offsets]
    every_text = "".join(message["content"] for message in conversation)
    breaker = next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in every_text)
    broken = [
        {**message, "content": special.sub(lambda match: match[0][0] + breaker + match[0][1:], message["content"])}
        for message in conversation
    ]
    rendered = _render(tokenizer, broken, False)
    spans = list(_answer_spans(tokenizer, broken, rendered, special))
    return _encode_pieces(tokenizer, rendered, spans, special, breaker)


def _encode_pieces(
    tokenizer: "PreTrainedTokenizerFast", rendered: str, spans: list[Span], special: re.Pattern[str], breaker: str
) -> tuple[list[int], list[bool]]:
    """Ids of the rendered text, special tokens looked up and what lies between them encoded as plain text."""
    backend = tokenizer.backend_tokenizer
    ids: list[int] = []
    graded: list[bool] = []
    cuts = sorted({0, len(rendered), *(edge for match in special.finditer(rendered) for edge in match.span())})
    cuts = sorted({*cuts, *(edge for span in spans for edge in span)})
    before, backend.encode_special_tokens = backend.encode_special_tokens, True
    try:
        for begin, end in pairwise(cuts):
            piece = rendered[begin:end]
            if special.fullmatch(piece):
                new = [tokenizer.convert_tokens_to_ids(piece)]
            else:
                new = backend.encode(piece.replace(breaker, ""), add_special_tokens=False).ids
            ids += new
            graded += [_inside(begin, spans)] * len(new)
    finally:
        backend.encode_special_tokens = before
    return ids, graded


def _answer_spans(
    tokenizer: "PreTrainedTokenizerFast", conversation: Conversation, rendered: str, special: re.Pattern[str]
) -> Iterator[Span]:
    """Where the answers lie in `rendered`: what each adds to the prompt before it, up to its closing special token."""
    for index, message in enumerate(conversation):
        if message["role"] != "assistant":
            continue
        prompt = _render(tokenizer, conversation[:index], True)
        so_far = _render(tokenizer, conversation[: index + 1], False)
        if not (so_far.startswith(prompt) and rendered.startswith(so_far.rstrip())):
            raise ValueError(
                f"the chat template of {tokenizer.name_or_path} writes earlier turns differently once later ones exist, so the "
                "assistant's words cannot be found in it: mark them in the template with {% generation %} ... {% endgeneration %}"
            )
        closing = [match.end() for match in special.finditer(so_far, len(prompt))]
        end = closing[-1] if closing and not so_far[closing[-1] :].strip() else len(so_far)
        yield len(prompt), end


def _render(tokenizer: "PreTrainedTokenizerFast", conversation: Conversation, add_generation_prompt: bool) -> str:
    return tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=add_generation_prompt)


def _inside(character: int, spans: list[Span]) -> bool:
    return any(begin <= character < end for begin, end in spans)
