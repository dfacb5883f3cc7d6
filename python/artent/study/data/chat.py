"""Conversations as tokens, with the mask of what the assistant said: its words and the token that ends its turn.

Which tokens those are is told by the chat template itself where it marks them (``{% generation %}``). Other templates
are rendered up to every answer; each rendering must begin the next, and what an answer adds, less the header of its
turn, is the assistant's.
"""

from __future__ import annotations

import re

import torch

__all__ = ["DEFAULT_TEMPLATE", "Refused", "encode"]

# For base models, whose tokenizers bring no template. Speakers are ordinary words, so that no token is new to the
# model; the token that ends a text ends an answer.
DEFAULT_TEMPLATE = (
    "{{ bos_token if bos_token is defined and bos_token else '' }}"
    "{% for message in messages %}"
    "{{ '' if loop.first else '\\n\\n' }}{{ '[' + message['role'] + ']\\n' + message['content'] | trim }}"
    "{{ eos_token if message['role'] == 'assistant' and eos_token is defined and eos_token else '' }}"
    "{% endfor %}"
    "{{ '\\n\\n[assistant]\\n' if add_generation_prompt else '' }}"
)

# Templates of Llama 3 write today's date where none is given: the same data would be other tokens tomorrow.
GIVEN = {"date_string": "26 Jul 2024"}
OTHER = "Other words."


class Refused(str):
    """Why the chat template made no text of a conversation."""


def encode(conversations, places, tokenizer):
    """For every conversation (ids, spoken), tensors (T) of tokens and whether the assistant said them, or Refused.

    Texts are tokenised in one call, which a fast tokenizer spreads over the cores. ``places`` names each in faults.
    Raises ValueError where a template does not let answers be told from questions, or the tokenizer does not tell
    where in the text its tokens are.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"model: the tokenizer {type(tokenizer).__name__} does not tell where in a text its tokens are, which the "
            "loss on answers alone needs; load a fast one (AutoTokenizer does where there is one)"
        )
    template = tokenizer.chat_template or DEFAULT_TEMPLATE
    if isinstance(template, dict) and "default" not in template:
        raise ValueError(
            f"model: the tokenizer has several chat templates ({', '.join(template)}), but none is named default"
        )
    template = template["default"] if isinstance(template, dict) else template
    if re.search(r"\{%-?\s*generation\s*-?%\}", template):
        return [_marked(messages, place, tokenizer, template) for messages, place in zip(conversations, places)]
    special = tuple(token for token in {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()} if token)
    found = [_rendered(messages, place, tokenizer, template, special) for messages, place in zip(conversations, places)]
    whole = [at for at, one in enumerate(found) if not isinstance(one, Refused)]
    for at, tokens in zip(whole, _tokens([found[at] for at in whole], tokenizer) if whole else ()):
        found[at] = tokens
    return found


def _apply(messages, tokenizer, template, **options):
    """The template applied, or Refused where it raises an error of its own, as some do for a system message."""
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, chat_template=template, **GIVEN, **options)
    except TemplateError as fault:
        return Refused(fault)


def _marked(messages, place, tokenizer, template):
    """By the marks of the template."""
    found = _apply(
        messages,
        tokenizer,
        template,
        return_dict=True,
        return_assistant_tokens_mask=True,
        tokenizer_kwargs={"return_offsets_mapping": True, "verbose": False},
    )
    if isinstance(found, Refused):
        return found
    offsets, spoken = found["offset_mapping"], list(found["assistant_masks"])
    for at in range(1, len(spoken)):  # a mark that ends in a character of several tokens covers only its first
        spoken[at] |= spoken[at - 1] and offsets[at] == offsets[at - 1] and offsets[at][0] < offsets[at][1]
    if not any(spoken):
        raise ValueError(f"model: the chat template marks no token of {place} as the assistant's")
    return torch.tensor(found["input_ids"]), torch.tensor(spoken).bool()


def _rendered(messages, place, tokenizer, template, special):
    """(text, [(begin, end)] of what the assistant said in it), by renderings that begin each other, or Refused."""

    def render(messages, **options):
        return _apply(messages, tokenizer, template, tokenize=False, **options)

    text, spans = render(messages), []
    if isinstance(text, Refused):
        return text
    for at, message in enumerate(messages):
        if message["role"] == "assistant":
            after = render(messages[: at + 1]) if at + 1 < len(messages) else text
            if isinstance(after, Refused):
                return after
            if not text.startswith(after):
                raise ValueError(
                    f"model: the chat template writes message {at + 1} of {place} otherwise when more follows, so what "
                    "the assistant said cannot be told from the rest. Mark it in the template with {% generation %}"
                )
            begin = _begin(after, message["content"], messages[:at], render)
            if begin is None:
                raise ValueError(
                    f"model: the chat template changes the assistant's words in message {at + 1} of {place}, so they "
                    "cannot be found in what it writes. Mark them in the template with {% generation %}"
                )
            spans.append((begin, _end(after, special)))
    return text, spans


def _tokens(rendered, tokenizer):
    """[(ids, spoken)] of texts with their spans: a token is the assistant's if its last character is."""
    found = tokenizer(
        [text for text, _ in rendered], add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    for ids, offsets, (_, spans) in zip(found["input_ids"], found["offset_mapping"], rendered):
        first, last = torch.tensor(offsets).view(-1, 2).T
        inside = [(begin < last) & (last <= end) & (first < last) for begin, end in spans]
        yield torch.tensor(ids), torch.stack(inside).any(0)


def _begin(after, content, earlier, render):
    """Where in ``after`` the assistant's words begin: behind the header of its turn; None where they cannot be found.

    The header is what is written before other words, or, in templates that write other things before other words
    (an empty thought where there is none), what invites the assistant.
    """
    header = render([*earlier, {"role": "assistant", "content": OTHER}]).partition(OTHER)[0]
    for words in (content, content.strip()):
        if after.startswith(words, len(header)) and after.startswith(header):
            return len(header)
    invited = render(earlier, add_generation_prompt=True)
    found = after.find(content.strip(), len(invited)) if after.startswith(invited) else -1
    return None if found < 0 else found


def _end(after, special):
    """Where the answer ends: behind its last special token, without the line that some templates begin after it."""
    bare = after.rstrip()
    return len(bare) if bare.endswith(special) else len(after)
