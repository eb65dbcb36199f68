"""What the workers of a fit tell its driver while they work."""

import threading
from collections.abc import Callable
from queue import Empty

import ray
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dipp_ray.preferences.room import cluster_has

SILENCE_S = 60.0  # without a word from the workers that is said, seconds

Progress = Callable[[int, dict], None]
Say = Callable[[str], None]


class Listener:
    """Passes on what comes by its `queue`, in a thread of its own; see `fit_worker` for the messages.

    progress(step, message) gets all of them; `say_start` a sentence at each start of the workers; `say` their silence.
    """

    def __init__(self, progress: Progress | None, say_start: Say | None, say: Say):
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self.progress, self.say_start, self.say = progress, say_start, say
        self.not_finite: str | None = None
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.queue.put(None)
        self.thread.join()
        self.queue.shutdown()

    def _listen(self) -> None:
        silent = 0.0
        while True:
            try:
                message = self.queue.get(timeout=SILENCE_S)
            except Empty:
                silent += SILENCE_S
                self.say(f"waiting for the workers, no word for {silent:.0f} s; {cluster_has()}")
                continue
            silent = 0.0
            if message is None:
                return
            if "not_finite" in message:
                self.not_finite = message["not_finite"]
                continue
            if "started" in message and self.say_start:
                count, step = message["workers"], message["step"]
                self.say_start(f"fitting with {count} worker{'s' if count > 1 else ''} from update {step}")
            if self.progress:
                self.progress(message["step"], message)
