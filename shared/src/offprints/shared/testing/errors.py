"""`check_errors`: bad input gets the right error with a message that names the argument."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from offprints.shared.testing._properties import expect_error


def check_errors(cases: Iterable[tuple[Callable[[], object], type[Exception], str]]) -> None:
    """Check that each call raises its error and that the message contains its word; all failures are reported.

    Args:
        cases: (call, error type, word in the message), such as ``(lambda: f(x, tau=-1.0), ValueError, "tau")``.

    Raises:
        AssertionError: A call raised nothing, something else, or a message without the word.
        ValueError: There is no case, or one without a word.
    """
    cases = list(cases)
    if not cases or not all(word for _, _, word in cases):
        raise ValueError("cases must hold at least one case, each with a word to look for")
    failures = []
    for number, (call, error, word) in enumerate(cases):
        what = f"case {number} ({error.__name__} with {word!r})"
        try:
            raised = expect_error(error, what, call)
        except AssertionError as failure:
            failures.append(str(failure))
            continue
        if word not in str(raised):
            failures.append(f"{what}: the message lacks the word: {raised}")
    if failures:
        raise AssertionError("check_errors: " + "\n".join(failures))
