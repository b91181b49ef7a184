"""Cancellation at a chosen step."""

import trio


class CancelAfter(trio.abc.Instrument):
    """Cancels ``scope`` when the task that it was made in has run for so many steps."""

    def __init__(self, steps: int) -> None:
        self.scope = trio.CancelScope()
        self._task, self._left = trio.lowlevel.current_task(), steps

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self.scope.cancel()
