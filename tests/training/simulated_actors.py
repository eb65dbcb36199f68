"""Actors without Ray, on a clock of their own: queues, collectives, deaths and silence, in any order of completion."""

from collections import defaultdict, deque
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace

from dipp_ray.training.actor_protocol import TaskResult
from dipp_ray.training.faults import ActorLost
from dipp_ray.training.tasks import GROUPS, Key


@dataclass(eq=False)
class Call:
    role: str
    index: int
    task: object  # None: a probe
    inputs: list = field(default_factory=list)
    state: str = "out"  # then 'ended'
    error: Exception | None = None
    place: int = 0  # among the tasks of its rank
    seconds: float = 0.0

    def __repr__(self):
        return f"{self.role}{self.index}:{self.task.key if self.task else 'probe'}"


class SimulatedActors:
    """Each actor does its calls in the order in which they came, one at a time (the reward client: any number; it and
    teachers: those first whose arguments are there).

    A rank's call ends only when every rank of its group has come to the same place, as collectives have it.
    """

    def __init__(self, shape, seed=0, teachers=2):
        self.sizes = {
            "generator": shape.generator_ranks,
            "score": shape.score_ranks,
            "teacher": teachers,
            "text": 1,
            "reward": 1,
        }
        self.random, self.now = Random(seed), 0.0
        self.queues = defaultdict(deque)
        self.seen = defaultdict(list)  # (role, index) -> the tasks that it was called with
        self.beats, self.restarted = [], []
        self.takes = {}  # action -> seconds
        self.log = []  # ("sent" | "ended", key)
        self.dead, self.hung, self.raising = {}, set(), {}
        self.gone = set()  # stateless ones that were given up
        self.places = defaultdict(int)

    # -- what the executor asks -----------------------------------------------------------------------------------

    def count(self, role):
        return len(self.indices(role))

    def indices(self, role):
        return [index for index in range(self.sizes[role]) if (role, index) not in self.gone]

    def follow(self, say):
        pass

    def send(self, task, index, answers):
        call = Call(task.role, index, task, [answer.reference for answer in answers.values()])
        assert set(answers) == set(task.needs)
        assert all(answer.reference is not None for answer in answers.values())
        self.seen[task.role, index].append(task)
        call.place = self.places[task.role, index]
        self.places[task.role, index] += 1
        self.queues[task.role, index].append(call)
        self.log.append(("sent", task.key))
        return TaskResult(call, call)

    def wait(self, reports, timeout_s):
        reports = list(reports)
        if not any(call.state == "ended" for call in reports):
            self._advance(timeout_s)
            self._let_beat()
        return [call for call in reports if call.state == "ended"]

    def result(self, call):
        assert call.state == "ended"
        if call.error:
            raise call.error
        return SimpleNamespace(seconds=call.seconds, of=call.task.key if call.task else None)

    def heartbeat(self, role, index):
        """As Ray does it: given to the actor behind the calls that came before, and answered beside what it is at."""
        inputs = [given for call in self.queues[role, index] for given in call.inputs]
        self.beats.append(beat := Call(role, index, None, inputs))
        self._let_beat()
        return beat

    def _let_beat(self):
        for beat in self.beats:
            who = beat.role, beat.index
            if who in self.dead:
                beat.state, beat.error = "ended", self.dead[who]
            elif who not in self.hung and all(given.state == "ended" for given in beat.inputs):
                beat.state = "ended"
        self.beats = [beat for beat in self.beats if beat.state != "ended"]

    def restart(self, role, index):
        """Its calls are asked again of who takes its place."""
        self.restarted.append((role, index))
        self.hung.discard((role, index))
        return True

    def is_consequence(self, error):
        return "closed by peer" in str(error) or "was lost" in str(error)

    def clock(self):
        return self.now

    # -- what happens ---------------------------------------------------------------------------------------------

    def kill(self, role, index):
        """From now on every call of this actor ends with its death, and calls that meet it break off."""
        self.dead[role, index] = ActorLost(role, index, "its process was killed")

    def give_up(self, role, index):
        """Its calls end with its death, and nobody is to ask it again."""
        self.kill(role, index)
        self.gone.add((role, index))

    def take_in(self, role):
        """One more."""
        self.sizes[role] += 1

    def _advance(self, timeout_s):
        """Let one to three calls end, chosen at random from those that can; or let the time pass."""
        for count in range(self.random.randint(1, 3)):
            ready = self._ready()
            if not ready:
                self.now += timeout_s if not count else 0.0
                return
            call, error = self.random.choice(ready)
            call.seconds = self.random.random() * 0.01
            self.now += self.takes.get(call.task.key.action if call.task else "", self.random.random() * 0.01)
            call.state, call.error = "ended", error
            self.queues[call.role, call.index].remove(call)
            if call.task:
                self.log.append(("ended", call.task.key))

    def _ready(self):
        """(call, error) of each that can end now."""
        found = []
        for (role, index), queue in self.queues.items():
            if (role, index) in self.dead:
                found += [(call, self.dead[role, index]) for call in queue]
                continue
            if (role, index) in self.hung:
                continue
            for call in list(queue) if role in ("reward", "teacher") else list(queue)[:1]:
                if call.task is None:
                    found.append((call, None))
                elif all(given.state == "ended" for given in call.inputs):
                    lost = next((given.error for given in call.inputs if given.error), None)
                    if lost is not None:
                        # As Ray has it: the death belongs to the argument's actor, or only its loss is told.
                        told = isinstance(lost, ActorLost) and self.random.random() < 0.5
                        found.append((call, lost if told else RuntimeError("an argument was lost")))
                    elif call.task.key in self.raising:
                        found.append((call, self.raising[call.task.key]))
                    elif role in GROUPS:
                        met = self._meeting(role, index, call.place)
                        if met == "broken":
                            found.append((call, RuntimeError("Connection closed by peer")))
                        elif met == "met":
                            found.append((call, None))
                    else:
                        found.append((call, None))
        return found

    def _meeting(self, role, index, place):
        """How this place's collective goes: 'met', 'waits', or 'broken' for want of a dead rank."""
        for other in range(self.sizes[role]):
            if other == index:
                continue
            queue = self.queues[role, other]
            here = next((call.place for call in queue if call.task is not None), self.places[role, other])
            if here > place:
                continue  # it has been here already
            if (role, other) in self.dead:
                return "broken"
            head = queue[0] if queue else None
            arrived = head is not None and head.task is not None and here == place
            if not arrived or not all(given.state == "ended" for given in head.inputs):
                return "waits"
            if (role, other) in self.hung:
                return "waits"
        return "met"


def backward_keys(log):
    return [key for event, key in log if event == "sent" and isinstance(key, Key) and key.action == "backward"]
