"""The commands and programs that README.md and docs/*.md show. Used by `check_docs.py`, which runs them, and by the
tests, which only parse them.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One command of a bash block, its continued lines joined and without its comment, or a whole python block."""

    document: Path
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text.replace("\\\n", " "), comments=True)

    def is_one_of(self, *programs: str) -> bool:
        """Whether it is a command that runs one of these programs."""
        return self.language == "bash" and self.arguments_of(*programs) is not None

    def arguments_of(self, *programs: str) -> list[str] | None:
        """What follows the first of these programs (`seesaw serve`, `scripts/soak`); None if the command runs none."""
        words = self.words
        for program in programs:
            names = program.split()
            for at in range(len(words)):
                found = words[at : at + len(names)]
                if found and [found[0].removeprefix(".venv/bin/"), *found[1:]] == names:
                    return words[at + len(names) :]
        return None


def commands() -> list[Command]:
    """All of them, in the order of the documents."""
    return [command for document in DOCUMENTS for command in _commands_of(document)]


def _commands_of(document: Path) -> list[Command]:
    text, found = document.read_text(), []
    for block in _BLOCK.finditer(text):
        line = text.count("\n", 0, block.start(2)) + 1
        if block[1] == "python":
            found.append(Command(document, line, "python", block[2]))
            continue
        for command in re.findall(r"(?:.*\\\n)*.*\n", block[2]):
            if shlex.split(command, comments=True):
                found.append(Command(document, line, "bash", command.strip()))
            line += command.count("\n")
    return found
