"""Every model begins with the weights of another run of its kind."""

import pytest
import torch

from lightning_gen.checkpoints import CheckpointError
from lightning_gen.starts import networks_of
from tests.contract.test_flags import FAMILIES
from tests.shared import save


@torch.no_grad()
def scrambled(model):
    """The same, with other numbers everywhere."""
    draw = torch.Generator().manual_seed(7)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=draw, dtype=torch.float64) + 1)
        else:
            tensor.copy_(tensor + 5)
    return model


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "KDE"])
def test_networks_take_all_and_the_rest_stays(family, tmp_path):
    given = scrambled(FAMILIES[family]())
    model = FAMILIES[family]()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start = model.init_from(save(given, tmp_path / "a.ckpt", global_step=0))
    trained, after = networks_of(model), model.state_dict()
    assert trained
    assert "first_stage" not in trained  # it is another model's
    assert start.left == ()
    for name, tensor in given.state_dict().items():
        network = "." in name and name.partition(".")[0] in trained and not name.endswith("num_batches_tracked")
        assert (name in start.taken) == network
        if name != "initialized":  # which says that weights need no first batch
            assert torch.equal(after[name], tensor if network else before[name].nan_to_num(1)) or before[name].isnan()
    assert bool(after.get("initialized", torch.ones(())))
    assert model.images_seen == 0


def test_what_has_no_networks_has_nothing_to_begin_with(tmp_path):
    model = FAMILIES["KDE"]()
    with pytest.raises(CheckpointError, match=r"weights of KDE \(no network\), and this is KDE \(no network\)"):
        model.init_from(save(model, tmp_path / "a.ckpt"))
