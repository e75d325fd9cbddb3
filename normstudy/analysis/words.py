"""Say config values in the words of a sentence: "post-norm, 6 layers, lr 3e-3, no warmup"."""

from collections.abc import Mapping

from normstudy.analysis.grid import Value, typed_number, value_text

NORMS = {"pre": "pre-norm", "post": "post-norm"}  # other placements are known by the config's names


def phrase(column: str, text: str) -> str:
    """Say one value: `6 layers`, `lr 3e-3`, `no warmup`, `pre-norm`, `d_model=64`. text: the value as `value_text`."""
    if column == "placement":
        return NORMS.get(text, text)
    if column == "n_layers":
        return f"{text} layer{'' if text == '1' else 's'}"
    if column == "warmup_steps":
        return "no warmup" if text == "0" else f"warmup {text}"
    if column == "data_sha256":
        return f"text {text[:8]}"
    word = {"peak_lr": "lr", "seed": "seed", "step": "step", "data": "text"}.get(column)
    return f"{word} {text}" if word else f"{column}={text}"


def title(place: Mapping[str, Value], names: Mapping[str, str]) -> str:
    """Say the values of several columns: `post-norm, 6 layers, lr 3e-3, no warmup`. names: long name -> short name."""
    texts = {column: value_text(value, typed_number) for column, value in place.items()}
    return ", ".join(phrase(column, names.get(text, text)) for column, text in texts.items())
