import re
from dataclasses import fields, replace
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightning_gen.data import scene_painting as module
from lightning_gen.data.base import Draw
from lightning_gen.data.scene_attributes import SceneAttributes
from lightning_gen.data.scene_painting import DOMAINS, render
from lightning_gen.data.scenes import Scenes, UnpairedScenes, captions

SIZE = 64


def values(attributes):
    return {field.name: getattr(attributes, field.name) for field in fields(attributes)}


def bare(**changes):
    """One scene with a house in the middle, no trees and no clouds, unless changed."""
    scene = SceneAttributes.draw(1, 11)
    still = {
        "house_present": [True],
        "house_x": [0.5],
        "house_size": [0.36],
        "house_windows": [2],
        "house_door": [1],
        "tree_present": [[False] * 3],
        "cloud_present": [[False] * 2],
        "body_x": [0.3],
        "body_y": [0.2],
        "body_radius": [0.07],
    }
    return replace(scene, **{name: np.array(value) for name, value in {**still, **changes}.items()})


def difference(a, b, domain, height=SIZE, width=SIZE):
    """Largest change over channels between two renderings, [H, W]."""
    pictures = [render(scene, domain, height, width)[0].int() for scene in (a, b)]
    return (pictures[0] - pictures[1]).abs().amax(0)


def box(mask):
    rows, columns = torch.where(mask)
    return (rows.max() - rows.min() + 1).item(), (columns.max() - columns.min() + 1).item()


class TestAttributes:
    def test_a_draw_is_a_prefix_of_longer_ones(self):
        few, many = values(SceneAttributes.draw(5, 3)), values(SceneAttributes.draw(200, 3))
        for name, value in few.items():
            np.testing.assert_array_equal(value, many[name][:5])

    def test_seeds_and_scenes_differ(self):
        x = np.concatenate([SceneAttributes.draw(100, seed).body_x for seed in (0, 1, (0, 1))])
        assert len(np.unique(x)) == 300

    def test_documented_ranges(self):
        ranges = re.findall(
            r"^ +(\w+): .*?\[N.*?\].*? in \[([\d.-]+), ([\d.]+)\]", SceneAttributes.__doc__, re.MULTILINE
        )
        drawn = SceneAttributes.draw(500, 0)
        assert len(ranges) > 10
        for name, low, high in ranges:
            if name != "cloud_x":
                value = getattr(drawn, name)
                assert value.min() >= float(low), name
                assert value.max() <= float(high), name

    def test_indexing_takes_the_same_rows_of_every_attribute(self):
        drawn = SceneAttributes.draw(10, 0)
        some = drawn[[7, 2]]
        assert len(some) == 2
        for name, value in values(some).items():
            np.testing.assert_array_equal(value, values(drawn)[name][[7, 2]])

    def test_vectors_forget_what_is_absent(self):
        scene = bare(house_present=[False])
        other = replace(scene, house_x=scene.house_x + 0.1, tree_size=scene.tree_size / 2, cloud_y=scene.cloud_y / 2)
        assert torch.equal(scene.vectors(), other.vectors())
        assert not torch.equal(scene.vectors(), replace(scene, body_x=scene.body_x + 0.1).vectors())

    def test_trees_stand_beside_the_house(self):
        drawn = SceneAttributes.draw(500, 0)
        gap = np.abs(drawn.tree_x - drawn.house_x[:, None])[drawn.house_present]
        assert gap.min() > 0.28


class TestRender:
    @pytest.mark.parametrize("domain", DOMAINS)
    @pytest.mark.parametrize(("height", "width"), [(33, 47), (160, 17)])
    def test_a_picture_does_not_depend_on_its_batch(self, domain, height, width, monkeypatch):
        drawn = SceneAttributes.draw(40, 5)
        together = render(drawn, domain, height, width)
        assert together.dtype == torch.uint8
        assert together.shape == (40, 3, height, width)
        for i in range(0, 40, 3):
            assert torch.equal(render(drawn[i : i + 1], domain, height, width)[0], together[i])
        monkeypatch.setattr(module, "_PIXELS_AT_ONCE", 7 * height * width)
        assert torch.equal(render(drawn, domain, height, width), together)

    @pytest.mark.parametrize("domain", DOMAINS)
    @pytest.mark.parametrize("size", [(64, 64), (48, 80)])
    def test_twice_the_resolution_averages_to_the_same_picture(self, domain, size):
        drawn = SceneAttributes.draw(32, 1)
        fine = render(drawn, domain, 2 * size[0], 2 * size[1]).float()
        error = (F.avg_pool2d(fine, 2) - render(drawn, domain, *size).float()).abs().flatten(1).mean(1)
        assert error.mean() < 1
        assert error.max() < 1.5

    @pytest.mark.parametrize("domain", DOMAINS)
    def test_a_tenth_of_a_pixel_moves_every_edge_a_little(self, domain):
        def shifted(step):
            return bare(body_x=[0.3 + step / (10 * SIZE)])

        steps = torch.cat([render(shifted(step), domain, SIZE, SIZE).float() for step in range(31)]).diff(dim=0).abs()
        # An edge that crosses a pixel in ten steps changes it by at most the contrast, here 255, in all.
        assert steps.max() <= 0.15 * 255
        assert (steps.flatten(1).amax(1) > 0).all()

    def test_light_moves_by_as_much_as_the_sun(self):
        def centre(x):
            sky = render(bare(house_present=[False], body_x=[x]), "day", SIZE, SIZE)[0, 2, :26].double()
            warmth = sky[:, :1] - sky  # the sun takes blue from a sky that is the same all along a row
            return ((warmth * torch.arange(SIZE)).sum() / warmth.sum()).item()

        for pixels in (0.1, 0.7, 3.2):
            # Rounding to 8 bits leaves some hundredths of a pixel.
            assert centre(0.5 + pixels / SIZE) - centre(0.5) == pytest.approx(pixels, abs=0.03)

    def test_things_keep_their_shape_in_wide_pictures_and_shrink_with_tall_ones(self):
        yellow, blue = bare(house_wall=[1]), bare(house_wall=[3])
        square = box(difference(yellow, blue, "day", 128, 128) > 8)
        wide = box(difference(yellow, blue, "day", 128, 240) > 8)
        tall = box(difference(yellow, blue, "day", 256, 128) > 8)
        assert square[1] == pytest.approx(0.36 * 128, abs=2)
        for other in (wide, tall):
            assert other == (pytest.approx(square[0], abs=2), pytest.approx(square[1], abs=2))

    @pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 200), (200, 16), (17, 31)])
    def test_any_rectangle(self, height, width):
        for domain in DOMAINS:
            pictures = render(SceneAttributes.draw(8, 0), domain, height, width)
            assert pictures.shape == (8, 3, height, width)
            assert (pictures.flatten(1).float().std(1) > 10).all()

    def test_walls_are_at_the_same_place_in_every_domain(self):
        # What a change of the walls' colour changes is where the walls are.
        masks = [difference(bare(house_wall=[1]), bare(house_wall=[3]), domain, 96, 96) > 5 for domain in DOMAINS]
        assert 0.02 < masks[0].float().mean() < 0.2
        for mask in masks[1:]:
            assert (mask & masks[0]).sum() / (mask | masks[0]).sum() > 0.9

    def test_houses_stand_in_the_ground_with_all_their_width(self):
        drawn = module._placed(SceneAttributes.draw(300, 2), 1.0)
        foot = module._crest(drawn, 2, drawn.house_x[:, None])[0] + drawn.house_depth[:, None]
        across = drawn.house_x[:, None] + np.linspace(-0.5, 0.5, 11) * drawn.house_size[:, None]
        assert (module._crest(drawn, 2, across)[0] < foot).all()
        assert foot.max() < 1

    @pytest.mark.parametrize("domain", DOMAINS)
    def test_every_attribute_of_what_is_there_shows(self, domain):
        scene = bare(tree_present=[[True] * 3], cloud_present=[[True] * 2], body_x=[0.5], cloud_y=[[0.1, 0.1]])
        seen = {}
        for name, value in values(scene).items():
            if value.dtype == bool:
                other = ~value
            elif value.dtype.kind == "i":
                other = value - 1 if name == "house_door" else value + 1
            else:
                other = (value + 0.5) % 1 if "hue" in name else 1.2 * value
            seen[name] = difference(scene, replace(scene, **{name: other}), domain, 96, 96).max().item()
        assert min(seen.values()) >= 8, seen

    @pytest.mark.parametrize("domain", ["night", "winter"])
    @pytest.mark.parametrize(
        ("name", "choices"),
        [
            ("house_wall", [[0], [1], [2], [3]]),
            ("house_roof", [[0], [1], [2], [3]]),
            ("ground_hue", [[0.0], [1.0]]),
            ("tree_hue", [[[0.0] * 3], [[1.0] * 3]]),
        ],
    )
    def test_a_third_of_the_days_colour_contrast_is_left(self, domain, name, choices):
        scenes = [bare(tree_present=[[True] * 3], **{name: choice}) for choice in choices]

        def contrast(a, b, domain):
            return difference(a, b, domain).float().quantile(0.99)

        for a, b in combinations(scenes, 2):
            assert contrast(a, b, domain) >= contrast(a, b, "day") / 3

    def test_unknown_domain_and_tiny_pictures_are_refused(self):
        with pytest.raises(ValueError, match="'dusk': choose one of day, night, summer, winter"):
            render(bare(), "dusk", 64, 64)
        with pytest.raises(ValueError, match="at least 16 x 16 pixels, got 8 x 64"):
            render(bare(), "day", 8, 64)


class TestTranslationIsMoreThanColours:
    @pytest.mark.parametrize(("source", "target"), [("day", "night"), ("night", "day")])
    def test_matching_histograms_does_poorly(self, source, target):
        fit, other, test = (SceneAttributes.draw(num, seed) for seed, num in enumerate((200, 200, 64)))
        train = render(fit, source, SIZE, SIZE), render(other, target, SIZE, SIZE)
        given, wanted = (render(test, domain, SIZE, SIZE) for domain in (source, target))
        matched = torch.empty_like(given, dtype=torch.float32)
        for c in range(3):
            levels = [pictures[:, c].flatten().long() for pictures in train]
            share = [level.bincount(minlength=256).cumsum(0) / len(level) for level in levels]
            matched[:, c] = torch.searchsorted(share[1], share[0]).clamp(max=255).float()[given[:, c].long()]
        error = ((matched - wanted) / 127.5).square().mean()
        assert 10 * torch.log10(4 / error) < 14

    def test_windows_light_up_while_the_sky_goes_dark(self):
        scene = bare(house_windows=[1], house_door=[1], house_size=[0.4])
        day, night = (render(scene, domain, 128, 128)[0, 0].float() for domain in ("day", "night"))  # red
        assert day[2].mean() > 80 > 20 > night[2].mean()
        panes = night > 240
        panes[:52] = False  # the moon
        assert panes.sum() > 40
        assert day[panes].median() < 90


class TestCaptions:
    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            (
                {"house_roof": [0], "house_wall": [0], "tree_present": [[True] * 3], "tree_x": [[0.8, 0.85, 0.9]]}
                | {"tree_conifer": [[True, False, True]], "body_y": [0.3]},
                "a red-roofed white house with two windows left of three trees under a low sun on the left, winter",
            ),
            (
                {"tree_present": [[True, False, True]], "tree_x": [[0.1, 0.2, 0.9]], "house_windows": [1]}
                | {"tree_conifer": [[True, False, False]], "house_roof": [3], "house_wall": [2], "house_door": [0]},
                "a green-roofed pink house with one window between one conifer on its left and one round tree "
                "on its right under a high sun on the left, winter",
            ),
            (
                {"house_present": [False], "cloud_present": [[True, True]], "body_x": [0.5]},
                "open hills under a high sun in the middle and two clouds, winter",
            ),
            (
                {
                    "house_present": [False],
                    "tree_present": [[True, True, False]],
                    "tree_conifer": [[True, True, False]],
                },
                "two conifers under a high sun on the left, winter",
            ),
        ],
    )
    def test_sentences(self, changes, sentence):
        assert captions(bare(**changes), "winter") == [sentence]

    def test_numbers_and_body_are_true_of_every_scene(self):
        drawn = SceneAttributes.draw(200, 4)
        numbers = ("zero", "one", "two", "three")
        for i, sentence in enumerate(captions(drawn, "night")):
            assert "moon" in sentence
            assert sentence.endswith(", night")
            assert ("house" in sentence) == drawn.house_present[i]
            if drawn.house_present[i]:
                assert f"{numbers[drawn.house_windows[i]]} window" in sentence
            found = re.findall(r"(one|two|three) (?:round )?(?:tree|conifer)", sentence)
            assert sum(map(numbers.index, found)) == drawn.tree_present[i].sum()


class TestScenes:
    def test_items(self):
        data = Scenes((32, 48), "winter", num_train=12, num_val=3, num_test=4, batch_size=4, num_workers=0)
        assert data.image_shape == (3, 32, 48)
        assert data.num_classes is None
        batch = next(iter(data.train_dataloader()))
        assert batch["image"].shape == (4, 3, 32, 48)
        assert batch["image"].dtype == batch["attributes"].dtype == torch.float32
        assert batch["image"].abs().max() <= 1
        assert len(data.val_set()) == 3
        assert len(data.test_set()) == 4

    def test_splits_are_disjoint_and_the_seed_changes_only_the_order(self):
        data = Scenes(num_train=50, num_val=50, num_test=50, seed=1)
        splits = [data.train_set(), data.val_set(), data.test_set()]
        assert len(np.unique(np.concatenate([split.scenes.body_x for split in splits]))) == 150
        other = Scenes(num_train=50, seed=2).train_set()
        np.testing.assert_array_equal(splits[0].scenes.body_x, other.scenes.body_x)

    def test_a_batch_holds_what_its_items_hold(self):
        dataset = Scenes(32, num_train=9).train_set()
        draws = [Draw(0, position, index) for position, index in enumerate((4, 0, 8))]
        for draw, item in zip(draws, dataset.__getitems__(draws), strict=True):
            for name, value in dataset[draw].items():
                assert torch.equal(item[name], value)

    @pytest.mark.parametrize("image_size", [15, (64, 8), (64, 64, 64)])
    def test_bad_sizes(self, image_size):
        with pytest.raises(ValueError, match="at least 16"):
            Scenes(image_size)

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="choose one of day, night, summer, winter"):
            Scenes(domain="dusk")
        with pytest.raises(ValueError, match="num_val must be at least 1, got 0"):
            Scenes(num_val=0)


class TestUnpairedScenes:
    def test_training_never_shows_a_scene_in_both_domains(self):
        data = UnpairedScenes(32, num_train=60, num_val=20, num_test=20)
        train = data.train_set()
        everything = [train.scenes, train.partners, data.val_set().scenes, data.test_set().scenes]
        assert len(np.unique(np.concatenate([scenes.body_x for scenes in everything]))) == 160
        assert train[Draw(0, 0, 0)].keys() == {"A", "B"}

    def test_partners_are_drawn_by_seed_epoch_and_position(self):
        def partners(seed, epoch):
            dataset = UnpairedScenes(16, num_train=20, seed=seed).train_set()
            return torch.stack([item["B"] for item in dataset.__getitems__([Draw(epoch, i, i) for i in range(10)])])

        assert torch.equal(partners(0, 0), partners(0, 0))
        assert not torch.equal(partners(0, 0), partners(0, 1))
        assert not torch.equal(partners(0, 0), partners(1, 0))

    def test_a_batch_holds_what_its_items_hold(self):
        dataset = UnpairedScenes(32, num_train=9).train_set()
        draws = [Draw(3, position, index) for position, index in enumerate((4, 0, 8))]
        for draw, item in zip(draws, dataset.__getitems__(draws), strict=True):
            for name, value in dataset[draw].items():
                assert torch.equal(item[name], value)

    @pytest.mark.parametrize("split", ["val", "test"])
    def test_evaluation_pairs_are_exact(self, split):
        data = UnpairedScenes((32, 40), ("summer", "winter"), num_val=3, num_test=3, eval_batch_size=3, num_workers=0)
        (batch,) = data.val_dataloader() if split == "val" else data.test_dataloader()
        assert batch["paired"].tolist() == [True] * 3
        scenes = data.scenes[split]
        for key, domain in (("A", "summer"), ("B", "winter")):
            assert torch.equal(batch[key], render(scenes, domain, 32, 40).float() / 127.5 - 1)

    def test_workers_change_nothing(self):
        epochs = []
        for num_workers in (0, 2):
            data = UnpairedScenes(16, num_train=8, batch_size=2, num_workers=num_workers, seed=5)
            epochs.append([torch.cat([batch["A"], batch["B"]]) for batch in data.train_dataloader()])
        assert len(epochs[0]) == 4
        assert all(torch.equal(a, b) for a, b in zip(*epochs, strict=True))

    @pytest.mark.parametrize("domains", [("day", "day"), ("day",), "day"])
    def test_two_different_domains(self, domains):
        with pytest.raises(ValueError, match="two different ones of day, night, summer, winter"):
            UnpairedScenes(domains=domains)

    def test_unknown_domain(self):
        with pytest.raises(ValueError, match="'dusk'"):
            UnpairedScenes(domains=("day", "dusk"))
