"""Errors that know the way out."""


class Problem(Exception):
    """An error, said as `subject: what is wrong`, and the hint that helps, if there is one."""

    def __init__(self, message: str, hint: str = "") -> None:
        """`hint` may be empty."""
        super().__init__(message)
        self.hint = hint

    def render(self) -> str:
        """Two lines at most: `error: …` and `hint: …`."""
        return f"error: {self}" + (f"\nhint: {self.hint}" if self.hint else "")
