"""Warnings of decoders are ignored while any thread decodes, all others are not, and the filters come back."""

import os
import threading
import warnings

from ssl_fast.data.quiet import quiet


def warn(module: str) -> int:
    """How many warnings reach the user when `module` gives one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn_explicit("odd", UserWarning, "file.py", 1, module)
    return len(caught)


def test_the_decoders_alone_are_quiet() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with quiet:
            assert (warn("PIL.TiffImagePlugin"), warn("torch.nn")) == (0, 1)
            with quiet:
                pass
            assert warn("PIL.TiffImagePlugin") == 0
        assert warn("PIL.TiffImagePlugin") == 1


def test_threads_that_leave_in_any_order_put_the_filters_back() -> None:
    before = list(warnings.filters)
    inside, leave = threading.Barrier(2), threading.Event()

    def decode() -> None:
        with quiet:
            inside.wait()
            leave.wait()

    thread = threading.Thread(target=decode)
    with quiet:
        thread.start()
        inside.wait()
    assert warn("PIL.TiffImagePlugin") == 0  # the thread is inside still
    leave.set()
    thread.join()
    assert warnings.filters == before


def test_a_process_forked_meanwhile_is_outside() -> None:
    with quiet:
        child = os.fork()
        if child == 0:
            os._exit(quiet._inside)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
