"""That contestants do the same work."""

import torch

from benchmarks.gpt import main, network_of, plain_step, prior_of, work
from benchmarks.train_step import FlopCounter


def test_the_plain_loop_learns_what_ours_does():
    model = prior_of("tiny", 4, dropout=0.0, label_dropout=0.0)
    torch.nn.init.normal_(model.network.levels[0].head.weight)
    codes, labels = torch.randint(8, (3, 4, 4)), torch.arange(3)
    images = model.first_stage.decode(codes)
    assert torch.equal(model.first_stage.codes(images), codes)
    expected = -model.log_prob(images, labels).mean() / 16
    torch.testing.assert_close(plain_step(model, codes, labels, "32-true")(None), expected.detach())


def test_operations_are_counted():
    network, counter = network_of("tiny", 4, torch.device("cpu")), FlopCounter()
    seen = network.embed(torch.zeros(2, 1, 4, 4, dtype=torch.int64))
    with counter:
        network(seen, torch.zeros(2, dtype=torch.int64))
    attention = 2 * 2 * 2 * 16 * 16 * 17 // 2  # what PyTorch counts of it depends on the kernel
    assert counter.flops >= work(network, 2) - attention > 0


def test_it_prints_how_many_times_as_long_each_takes(capsys):
    main(["--sizes", "tiny", "--pictures", "1", "2", "--side", "4", "--turns", "1"])
    told = capsys.readouterr().out
    assert told.count("tiny") == 2 + 1 + 2
