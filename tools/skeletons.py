"""A new paper's package from the skeleton: complete, and passing its own tests, lint and types at once."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from common import UsageError, members, metadata

SKELETON = Path(__file__).resolve().parent / "skeleton"
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
REQUIREMENT = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?([<>=!~].*)?")
TAKEN = {"claims", "test", "bench"}
WIDTH = 120


def new(
    root: Path,
    name: str,
    *,
    title: str,
    arxiv: str,
    golden: Path | None = None,
    extras: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Create ``packages/<name>`` from the skeleton; its tests pass at once."""
    extras, title = dict(extras or {}), title.strip()
    _check(name, title, arxiv, golden, extras)
    target = root / "packages" / name
    if target.exists():
        raise UsageError(f"{target} exists")
    fields = _fields(root, name, title, arxiv, extras)

    def fill(text: str) -> str:
        return re.sub("@(" + "|".join(fields) + ")@", lambda match: fields[match[1]], text)

    draft = target.with_name(f".{name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    for source in sorted(path for path in SKELETON.rglob("*") if path.is_file()):
        relative = source.relative_to(SKELETON)
        destination = draft / fill(str(relative.with_suffix("") if relative.suffix == ".in" else relative))
        destination.parent.mkdir(parents=True, exist_ok=True)
        text = fill(source.read_text(encoding="utf-8"))
        destination.write_text(sort_imports(text) if destination.suffix == ".py" else text, encoding="utf-8")
    shutil.copyfile(root / "LICENSE", draft / "LICENSE")
    if golden is not None:
        shutil.copytree(golden, draft / "tests" / "golden")
    draft.rename(target)
    return target


def _check(name: str, title: str, arxiv: str, golden: Path | None, extras: Mapping[str, Sequence[str]]) -> None:
    if not NAME.fullmatch(name) or name == "shared":
        raise UsageError(f"name {name!r} is not lower-case words joined by hyphens")
    if not re.fullmatch(r"\d{4}\.\d{4,5}", arxiv):
        raise UsageError(f"--arxiv {arxiv!r} is not an identifier such as 2211.15272")
    if not title or any(character in title for character in '"\\\n'):
        raise UsageError("--title must be one line without quotation marks or backslashes")
    if golden is not None and not golden.is_dir():
        raise UsageError(f"--golden {golden} is not a folder")
    for extra, packages in extras.items():
        if not NAME.fullmatch(extra) or extra in TAKEN:
            raise UsageError(f"--extra {extra!r} is not lower-case words joined by hyphens other than {sorted(TAKEN)}")
        for package in packages:
            if not REQUIREMENT.fullmatch(package) or '"' in package:
                raise UsageError(f"--extra {extra}: {package!r} is not a requirement such as nibabel>=5")


def _fields(root: Path, name: str, title: str, arxiv: str, extras: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """What stands for each ``@FIELD@`` of the skeleton."""
    module = name.replace("-", "_")
    shared = metadata(members(root)["shared"])["version"]
    major, minor = (int(number) for number in shared.split(".")[:2])
    quoted = {extra: ", ".join(f'"{package}"' for package in packages) for extra, packages in extras.items()}
    return {
        "NAME": name,
        "MODULE": module,
        "TITLE": title,
        "ARXIV": arxiv,
        "YEAR": f"20{arxiv[:2]}",
        "DATE": datetime.now(UTC).date().isoformat(),
        "CORE": f">={shared},<{major}.{minor + 1}",
        "DOCSTRING": docstring(f"{title} (arXiv {arxiv})."),
        "TITLE_ARGUMENT": argument("title", title, indent=4),
        "TEST_EXTRAS": ",".join(["claims", *extras]),
        "EXTRAS": "".join(f"{extra} = [{packages}]\n" for extra, packages in quoted.items()),
        "INSTALL_EXTRAS": "".join(f'pip install "offprints-{name}[{extra}]"\n' for extra in extras),
    }


def sort_imports(text: str) -> str:
    """Order the imports of the namespace: where the package's own stand beside the core's depends on its name."""
    block = re.compile(r"(?:^from offprints\..*\n)+", re.MULTILINE)
    return block.sub(lambda match: "".join(sorted(match[0].splitlines(keepends=True), key=str.lower)), text)


def docstring(text: str) -> str:
    """A docstring of any length within the width of a line."""
    lines = textwrap.wrap(f'"""{text}', WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines) + ('"""' if len(lines[-1]) + 3 <= WIDTH else '\n"""')


def argument(name: str, text: str, *, indent: int) -> str:
    """A keyword argument, a string of any length within the width of a line, as the formatter writes it."""
    line = f'{" " * indent}{name}="{text}",'
    if len(line) <= WIDTH:
        return line.lstrip()
    inner = " " * (indent + 4)
    width = WIDTH - len(inner) - 3  # quotation marks and the space between two parts
    parts = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    strings = [f'{inner}"{part}{" " * (number < len(parts))}"' for number, part in enumerate(parts, start=1)]
    return "\n".join([f"{name}=(", *strings, f"{' ' * indent}),"])
