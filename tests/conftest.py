import multiprocessing
import os
import traceback

import pytest
import torch

# Tests run side by side; more threads than one would only fight for the cores. It also makes forking safe.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _child(function, args, connection):
    try:
        connection.send((function(*args), None))
    except BaseException as error:  # SystemExit too: the parent decides what it means
        connection.send((None, (error if isinstance(error, SystemExit) else RuntimeError(traceback.format_exc()))))
    finally:
        connection.close()
        os._exit(0)


@pytest.fixture
def fresh_process():
    """Call a function in a process of its own, forked from this one, which has the imports done and nothing else.

    A child that dies without an answer, as by kill -9, gives None.
    """

    def call(function, *args):
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(function, args, sender))
        process.start()
        sender.close()
        try:
            result, error = receiver.recv()
        except EOFError:
            result, error = None, None
        process.join(timeout=120)
        if error is not None:
            raise error
        return result

    return call
