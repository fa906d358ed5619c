"""GSM-Symbolic (Mirzadeh et al., arXiv:2410.05229) as the package makes it: new numbers in GSM8K's problems.

All seeds share its templates, so that a split by seed tests new numbers only: here templates are held out. An item's
template is the number of the function that made it, which the set of the package keeps.
"""

from __future__ import annotations

from stabledllm.tasks import numbers, scoring


def template_name(number: int) -> str:
    """The name of a template; its hash decides its split, whatever other templates there are."""
    return f"gsm_symbolic template {number}"


def response_of(item: dict, form: str) -> str | None:
    """The response to train on, in GSM8K's form: the worked solution, or the number alone.

    Returns:
        None for an item whose worked solution ends in another number than its answer, so that one of them is wrong.
    """
    worked, answer = item["metadata"]["answer_cot"].strip(), str(item["answer"])
    found = scoring.parse_answer(worked)
    if found is None or not numbers.same(found, scoring.parse_gold(answer)):
        return None
    return worked if form == "worked" else answer
