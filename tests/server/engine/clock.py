"""The time, as a test sets it."""


class Clock:
    """Both clocks of the engine. They stand still until a test moves them."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """Of the monotonic clock."""
        self.wall_seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def wall(self) -> float:
        return self.wall_seconds

    def pass_to(self, seconds: float) -> None:
        """Lets the monotonic clock come to a time; the other clock goes on as long."""
        self.wall_seconds += seconds - self.seconds
        self.seconds = seconds
