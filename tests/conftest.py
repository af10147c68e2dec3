import itertools
import logging
import multiprocessing
import os
import pickle
import traceback

import pytest
import torch
import torch.distributed

# Tests run side by side; more threads than one would only fight for the cores. It also makes forking safe.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The first backward pass of a process decides for good whether autograd has threads, with which nothing may fork. If it
# comes after a compilation, which registers a stand-in for CUDA, it does start them.
torch.ones(1, requires_grad=True).sum().backward()


def pytest_collection_modifyitems(config, items):
    """Leave out what is marked `gpu` where there is none; `python -m benchmarks.accelerator` runs it where there is."""
    if not torch.cuda.is_available() and (left_out := [item for item in items if item.get_closest_marker("gpu")]):
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """What is kept between runs lies in a folder of the tests."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTNING_GEN_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def no_process_group_is_left():
    """A test that leaves one would let processes of later tests, forked from this one, wait for each other for ever."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        pytest.fail("This test leaves a process group behind: let a `fresh_process` have it.")


@pytest.fixture(autouse=True)
def loggers_say_what_they_said():
    """Commands and examples quieten Lightning, which later tests of what it says, in this process, must not notice."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("lightning.pytorch", "lightning.fabric"))}
    yield
    for logger, level in levels.items():
        logger.setLevel(level)


PATIENCE = 600  # seconds, for processes that wait for each other for ever


def _child(function, args, connection):
    try:
        # Plain pickle: multiprocessing's own would share tensors' memory, which ends with this process.
        connection.send_bytes(pickle.dumps((function(*args), None)))
    except BaseException as error:  # SystemExit too: the parent decides what it means
        known = error if isinstance(error, SystemExit) else RuntimeError(traceback.format_exc())
        connection.send_bytes(pickle.dumps((None, known)))
    finally:
        connection.close()
        os._exit(0)


@pytest.fixture
def fresh_process():
    """Call a function in a process of its own, forked from this one, which has the imports done and nothing else.

    A child that dies without an answer, as by kill -9, gives None. One that gives none for ten minutes is an error.
    """

    def call(function, *args):
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(function, args, sender))
        process.start()
        sender.close()
        if not receiver.poll(PATIENCE):
            process.kill()
            raise TimeoutError(f"{function.__name__} has given no answer in {PATIENCE} seconds.")
        try:
            result, error = pickle.loads(receiver.recv_bytes())
        except EOFError:
            result, error = None, None
        process.join(timeout=PATIENCE)
        if error is not None:
            raise error
        return result

    return call


def _on_rank(rank, world_size, store, function, args):
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=world_size)
    return function(rank, *args)


@pytest.fixture
def on_ranks(tmp_path):
    """Call `function(rank, *args)` in forked processes that form a gloo group; the results of all ranks, in order.

    An exception stands in the place of the result.
    """
    numbers = itertools.count()

    def call(function, *args, world_size=2):
        context = multiprocessing.get_context("fork")
        store = tmp_path / f"group_{next(numbers)}"
        receivers, processes = [], []
        for rank in range(world_size):
            receiver, sender = context.Pipe(duplex=False)
            job = (_on_rank, (rank, world_size, store, function, args), sender)
            processes.append(context.Process(target=_child, args=job))
            processes[-1].start()
            sender.close()
            receivers.append(receiver)
        answers = []
        for receiver in receivers:
            try:
                result, error = pickle.loads(receiver.recv_bytes())
            except EOFError:
                result, error = None, RuntimeError("died without a word")
            answers.append(result if error is None else error)
        for process in processes:
            process.join(timeout=PATIENCE)
        return answers

    return call


# What a kill, a full disk, a failing one or a person may leave in a file of records.
DAMAGE = [
    '{"step": 6, "tr',
    '{"step": 6, "train/loss": [[1], {"a": null}], "train/x": {"b": 2}, "model": [1], "status": 7, "max_steps": []}',
    '{"step": true, "seconds": {}, "metrics": [1, 2], "checkpoint": {"a": 1}, "model": {}, "data": 1e999}',
    '{"step": 6, "train/loss": 1'
    + "0" * 4000
    + ', "max_steps": 1'
    + "0" * 400
    + ', "images_seen": 1'
    + "0" * 400
    + "}",
    '{"step": 1' + "0" * 400 + ', "seconds": 1e308, "max_steps": NaN, "images_seen": "many"}',
    '{"step": 1' + "0" * 5000 + "}",
    '{"step": 6, "seconds": -1e308, "images_seen": NaN, "\\ud800": "\\udfff", "": 1, "max_steps": -Infinity}',
    '{"step": 6, "a": ' + "[" * 900 + "]" * 900 + ', "metrics": {"a": ' + "[" * 900 + "]" * 900 + "}}",
    "[" * 90_000,
    "\x00" * 40,
    "null",
]


@pytest.fixture(params=DAMAGE, ids=range(len(DAMAGE)))
def damage(request):
    """A text that may stand in a file of records."""
    return request.param
