"""That contestants do the same work."""

import torch

from benchmarks.quantizers import Plain, main, of_ours, of_plain, step
from lightning_gen.layers import VectorQuantizer


def test_the_plain_version_learns_and_gives_what_ours_does():
    torch.manual_seed(0)
    ours, plain = VectorQuantizer(6, 16, restart_below=0), Plain(6, 16)
    plain.load_state_dict(ours.state_dict(), strict=False)
    features, direction = torch.randn(3, 6, 20, requires_grad=True), torch.randn(3, 6, 20)
    for _ in range(3):
        gradients = []
        for run, quantizer in ((of_ours, ours), (of_plain, plain)):
            step(lambda maps, run=run, quantizer=quantizer: run(quantizer, maps), features, direction)
            gradients.append(features.grad.clone())
        torch.testing.assert_close(*gradients)
        torch.testing.assert_close(ours.codebook, plain.codebook)


def test_it_prints_how_many_times_as_long_each_takes(capsys):
    main(["--pictures", "2", "--tokens", "8", "--size", "4", "--codes", "16", "--turns", "1"])
    assert "plain" in capsys.readouterr().out
