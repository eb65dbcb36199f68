"""A shared reward service that gives no answer: its trainer pauses and asks again, for so long as it is told to."""

from collections.abc import Callable

from dipp_ray.errors import RewardAwayError

SAY_EVERY_S = 60.0


class Away:
    """longest_s: how long it may be away in all, 0 for no pause. say: told that the run waits, and that it goes on."""

    def __init__(self, longest_s: float, say: Callable[[str], None]):
        self.longest_s, self.say = longest_s, say
        self.since: float | None = None  # when the first question that got no answer was asked
        self.said = 0.0

    def asks_again(self, error: BaseException, asked: float, now: float) -> bool:
        """Whether the question of time `asked` that ended with `error` is to be asked again."""
        if not isinstance(error, RewardAwayError) or not self.longest_s:
            return False
        first = self.since is None
        self.since = asked if self.since is None else min(self.since, asked)
        away = now - self.since
        if away >= self.longest_s:
            self.say(f"the reward service has been away for {away:.0f} s, as long as reward.away_s allows")
            return False
        if first or now - self.said >= SAY_EVERY_S:
            self.said = now
            self.say(
                f"the reward service has given no answer for {away:.0f} s: the run pauses until it does, up to "
                f"{self.longest_s:g} s (reward.away_s); {error}"
            )
        return True

    def answered(self, now: float) -> None:
        """A question got its answer."""
        if self.since is not None:
            self.say(f"the reward service answers again, after {now - self.since:.0f} s; no step is lost")
            self.since = None
