"""That the step which is timed is that of training."""

import torch
from torch.utils.data import DataLoader

from benchmarks.augment import Game, dcgan, main
from lightning_gen.layers import ADA
from tests.shared import trainer


def test_the_step_is_that_of_training():
    real = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.manual_seed(0)
    trained = dcgan(16, 2, ADA(p=0.5))
    trained.noise_seed = 3
    seeds = []
    trained._set_noise = lambda *place: seeds.append(torch.manual_seed(5))
    trainer(max_steps=1).fit(trained, DataLoader([{"image": real}], batch_size=None))
    game = Game(lambda: dcgan(16, 2, ADA(p=0.5)), real)
    torch.manual_seed(5)
    game.step()
    assert seeds
    for name, weight in trained.state_dict().items():
        torch.testing.assert_close(game.model.state_dict()[name], weight)


def test_it_prints_what_each_adds(capsys):
    main(["--models", "DCGAN", "--image-size", "16", "--batch-size", "2", "--filters", "2", "--turns", "1"])
    printed = capsys.readouterr().out
    assert "DCGAN x 2, ADA" in printed
    assert "%" in printed
