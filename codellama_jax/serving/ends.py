"""Where the completion at a cursor ends before the model ends it.

A model that does not end a middle continues with the code that already follows the cursor, or
leaves the block that the cursor is in. Both are found line by line.
"""

from __future__ import annotations

from dataclasses import dataclass

from codellama_jax.generation.middle import first_line, indentation_of


@dataclass(frozen=True)
class CursorEnds:
    """The lines that end a middle; neither they nor blank lines before them belong to it.

    Attributes:
      indentation: a line that is indented by fewer characters ends the middle; 0 for none.
      following: a line equal to this one, white space around it aside, ends it; "" for none.
      keeps_newline: whether a middle that ends so keeps the end of its last line, because text
        follows the cursor in its line.
    """

    indentation: int = 0
    following: str = ""
    keeps_newline: bool = False

    @classmethod
    def around(
        cls, prefix: str, suffix: str, at_dedent: bool, at_repetition: bool, indentation: int = 0
    ) -> CursorEnds | None:
        """Returns the ends of the middle between a prefix and a suffix; None without any.

        Args:
          prefix: text before the cursor.
          suffix: text after it.
          at_dedent: end before a line that is indented less than the cursor's line.
          at_repetition: end before a line that repeats the next line of the suffix.
          indentation: the least of every line after the first, as editors ask for; 0 for any.
        """
        # The line that the cursor is in, up to the cursor.
        line = prefix.rpartition("\n")[2]
        if at_dedent:
            indentation = max(indentation, indentation_of(line))
        rest, _, after = suffix.partition("\n")
        # On an empty line before other text, that text follows; inside a line it is the next line.
        following = rest if rest.strip() and not line.strip() else first_line(after)
        following = following.strip() if at_repetition else ""
        if not indentation and not following:
            return None
        return cls(indentation, following, bool(rest.strip()))

    def truncate(self, text: str) -> str:
        """Truncates a growing text. Monotone: appending text never moves its end."""
        lines = text.split("\n")
        # The first line continues the cursor's line and ends nothing, whatever its indentation.
        for index, line in enumerate(lines[1:], 1):
            is_complete = index < len(lines) - 1
            if self._ends(line, is_complete):
                return self._joined(lines[:index])
        return text

    def final(self, text: str) -> str:
        """Truncates a text to which nothing is appended any more."""
        lines = text.split("\n")
        # Nothing is appended any more, so that the last line counts as complete too.
        for index, line in enumerate(lines[1:], 1):
            if self._ends(line, is_complete=True):
                return self._joined(lines[:index])
        return text

    def shown(self, text: str) -> str:
        """Returns the part of a growing text that `truncate` and `final` keep in any case."""
        kept = self.truncate(text)
        if kept != text:
            return kept
        lines = text.split("\n")
        last = lines[-1].strip()
        # The last line may become the line that ends the middle: it is held back until it cannot.
        if len(lines) > 1 and (not last or (self.following and self.following.startswith(last))):
            lines.pop()
        while len(lines) > 1 and not lines[-1].strip():
            lines.pop()
        return "\n".join(lines)

    def _ends(self, line: str, is_complete: bool) -> bool:
        if not line.strip():
            return False
        if indentation_of(line) < self.indentation:
            return True
        # A line that is not complete may still become another one.
        return is_complete and line.strip() == self.following

    def _joined(self, lines: list[str]) -> str:
        while len(lines) > 1 and not lines[-1].strip():
            lines = lines[:-1]
        return "\n".join(lines) + ("\n" if self.keeps_newline else "")
