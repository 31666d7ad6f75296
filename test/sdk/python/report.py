"""Steps and their outcome, and the inbox that events arrive in."""

import contextlib
import queue
import threading
import time

STEP_LIMIT = 15  # seconds


class Report:
    """Prints one line per step."""

    def __init__(self):
        self.passed = 0
        self.failed = 0
        self.prefix = ''

    def step(self, name, run):
        start = time.time()
        error = [TimeoutError(f'not done after {STEP_LIMIT + 5} s')]

        def attempt():
            try:
                run()
                error[0] = None
            except Exception as e:  # a step may fail in any way
                error[0] = e

        # Some methods of the SDK wait without a limit; a stuck one is left behind.
        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(STEP_LIMIT + 5)
        if error[0]:
            self.failed += 1
            text = ' '.join(f'{type(error[0]).__name__}: {error[0]}'.split())
            print(f'FAIL {self.prefix}{name}: {text[:500]}', flush=True)
            return
        self.passed += 1
        print(f'PASS {self.prefix}{name} ({(time.time() - start) * 1000:.0f}ms)', flush=True)

    @contextlib.contextmanager
    def under(self, prefix):
        old = self.prefix
        self.prefix += prefix + ': '
        yield
        self.prefix = old


class Inbox:
    """Keeps what the apps received, by name."""

    def __init__(self):
        self._lock = threading.Lock()
        self._queues = {}

    def _queue(self, name):
        with self._lock:
            return self._queues.setdefault(name, queue.Queue())

    def put(self, name, event):
        self._queue(name).put(event)

    def take(self, name):
        try:
            return self._queue(name).get(timeout=STEP_LIMIT)
        except queue.Empty:
            raise AssertionError(f'no event arrived at {name}') from None

    def size(self, name):
        return self._queue(name).qsize()


def expect(what, got, want):
    if got != want:
        raise AssertionError(f'{what} is {got!r}, want {want!r}')


def refused(kind, run, check):
    """Runs run, which must raise a kind that check finds right."""
    try:
        result = run()
    except kind as e:
        check(e)
        return
    raise AssertionError(f'got {result!r}, want {kind.__name__}')
