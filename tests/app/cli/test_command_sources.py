"""Models and inputs from words: factories, programs, configurations; arrays, images, token ids."""

from __future__ import annotations

import json
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import capalloc
from capalloc.app.cli.image_folder import read_images
from capalloc.app.cli.input_source import normalised, parse_integers, parse_position, read_array, read_several
from capalloc.app.cli.model_source import read_model
from capalloc.app.cli.options import ModelOptions, Verbosity
from capalloc.app.cli.sources import read_sources
from capalloc.architectures import token_table
from commands import misused, refused, run
from lacking import lack

QUIET = Verbosity(quiet=True)
SMALL_GPT = ("n_layer=1", "n_embd=8", "n_head=2", "vocab_size=11", "n_positions=6", "bos_token_id=0", "eos_token_id=0")
SMALL_VIT = ("hidden_size=8", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=12", "patch_size=4")


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
def test_data_from_a_file(folder, suffix):
    x = np.random.default_rng(0).normal(size=(5, 1, 6, 6))
    if suffix == "npy":
        np.save("x.npy", x)
    elif suffix == "npz":
        np.savez("x.npz", inputs=x, labels=np.arange(5))
    else:
        save_file({"images": x}, "x.safetensors")
    loaded = read_sources(ModelOptions("factories:Holder.double", data=folder / f"x.{suffix}"), QUIET, 8)
    assert loaded.inputs.dtype == torch.float64
    np.testing.assert_array_equal(loaded.inputs, x)
    options = ModelOptions("factories:net", data=folder / f"x.{suffix}", examples=2, mean="0.5", std="2")
    first = read_sources(options, QUIET, 8)
    np.testing.assert_allclose(first.inputs, (x[:2] - 0.5) / 2, rtol=1e-6)


class Sum(torch.nn.Module):
    """A model of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = torch.nn.Linear(3, 4), torch.nn.Linear(2, 4), torch.nn.Linear(4, 2)

    def forward(self, x, y):
        return self.head(torch.relu(self.a(x) + self.b(y)))


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_arrays_of_one_file_are_the_inputs_of_their_names(tmp_path, suffix):
    generator = np.random.default_rng(0)
    given = {"x": generator.normal(size=(12, 3)), "y": generator.normal(size=(12, 2))}
    file, program = tmp_path / f"both.{suffix}", tmp_path / "sum.pt2"
    np.savez(file, **given) if suffix == "npz" else save_file(given, file)
    tensors = {name: torch.from_numpy(value[:10]).float() for name, value in given.items()}
    exported = torch.export.export(Sum().eval(), (tensors["x"], tensors["y"]))
    torch.export.save(exported, program)
    told = ("measure", str(program), "--data", str(file), "--examples", "10", "--out", str(tmp_path / "found.nc"))
    assert run(*told).exit_code == 0
    expected = capalloc.measure(exported, tensors)
    np.testing.assert_allclose(capalloc.load(tmp_path / "found.nc").capacity, expected.capacity, rtol=1e-6)


SEVERAL = """
import torch

class Ids(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 2)

    def forward(self, ids):
        return self.head(torch.tanh(self.embedding(ids)).mean(1))

class Sum(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(3, 2), torch.nn.Linear(2, 2)

    def forward(self, x, y):
        return torch.relu(self.a(x) + self.b(y))
"""


OF_VECTORS = """
class Vectors(Ids):
    def forward(self, x):
        return self.head(torch.tanh(x + self.embedding.weight[:1]).mean(1))
"""


@pytest.mark.parametrize("command", ["audit", "rank", "diagnose", "scaling", "decoupling", "propagate"])
def test_every_command_takes_several_inputs_and_token_ids_of_a_factory(tmp_path, command):
    generator = np.random.default_rng(0)
    (tmp_path / "nets.py").write_text(SEVERAL)
    np.save(tmp_path / "ids.npy", generator.integers(9, size=(20, 5)))
    np.savez(tmp_path / "both.npz", x=generator.normal(size=(20, 3)), y=generator.normal(size=(20, 2)))
    for factory, data in (("Ids", "ids.npy"), ("Sum", "both.npz")):
        done = run(command, f"{tmp_path}/nets.py:{factory}", "--data", str(tmp_path / data), "--json", "--quiet")
        assert done.exit_code == 0, done.output


def test_whole_numbers_are_pixels_for_a_model_without_an_embedding(folder):
    np.save("x.npy", np.arange(40).reshape(10, 4))
    assert read_sources(ModelOptions("factories:net", data=folder / "x.npy"), QUIET, 8).inputs.dtype == torch.float32


def test_data_make_an_architecture_fit(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 2, 12, 12), dtype=np.float32))
    loaded = read_sources(ModelOptions("lenet", data=tmp_path / "x.npy"), QUIET, 8)
    assert loaded.model.conv1.weight.shape[1] == 2


def test_a_made_model_and_words_as_arguments(folder):
    assert isinstance(read_model("factories:made").model, torch.nn.Module)
    assert isinstance(read_model("factories:net", ["act=Tanh"]).model[1], torch.nn.Tanh)


def test_sources_that_make_no_model(folder):
    shape = ("--shape", "1,6,6")
    for name, hint in (("factories", "`capalloc models` lists the architectures"), ("resnet19", "did you mean resnet")):
        line = misused("propagate", name, *shape)
        assert f"a configuration of transformers, got '{name}'" in line
        assert hint in line
    assert "No module named 'missing'" in refused("propagate", "missing:net", *shape)
    lacking = refused("propagate", "factories:nets", *shape)
    assert "module factories has no nets; it has " in lacking
    assert "nothing" in lacking
    assert "factories.py is a file of code: name what makes" in misused("propagate", "factories.py", *shape)
    assert "factories:number is a int; name a function or class" in refused("propagate", "factories:number", *shape)
    assert "factories:nothing returned int; it must return" in refused("propagate", "factories:nothing", *shape)
    assert "unexpected keyword argument 'depth'" in refused("propagate", "factories:net", "--arg", "depth=2", *shape)
    assert "--arg must be name=value, got 'depth'" in misused("propagate", "factories:net", "--arg", "depth", *shape)
    assert "a .pt2 file has its weights" in misused("propagate", "net.pt2", "--arg", "depth=2", *shape)
    assert "there is no file net.pt2" in refused("propagate", "net.pt2", *shape)
    assert "mlp takes no argument 'heads'" in refused("propagate", "mlp", "--arg", "heads=2")
    assert "width must be a positive integer" in refused("propagate", "mlp", "--arg", "width=-2")


def test_inputs_that_are_none(folder):
    assert "give --shape, for Gaussian inputs, or --data" in refused("measure", "factories:net")
    assert "--shape must be integers >= 1" in misused("measure", "factories:net", "--shape", "1,a")
    data = ("measure", "factories:net", "--data")
    assert "there is no file x.npy" in refused(*data, "x.npy")
    (folder / "x.txt").write_text("1")
    assert "--data must be a file .npy, .npz, .safetensors or a folder of images, got x.txt" in refused(*data, "x.txt")
    (folder / "x.npy").write_bytes(b"noise")
    assert "x.npy cannot be read" in refused(*data, "x.npy")
    np.savez("x.npz", a=np.zeros(1), b=np.zeros(1))
    rank = ("rank", "factories:net", "mlp", "--shape", "1,6,6", "--labels", "x.npz")
    assert "name the examples 'inputs', or keep one array" in refused(*rank)
    assert "--shape, --mean and --std are of one array; x.npz holds a, b" in misused(*data, "x.npz", "--mean", "1")
    (folder / "y.npz").write_bytes(b"noise")
    assert "y.npz cannot be read" in refused(*data, "y.npz")
    np.save("x.npy", np.zeros(3))
    assert "array of shape (3,); its first axis must be examples" in refused(*data, "x.npy")
    np.save("x.npy", np.zeros((3, 1, 6, 6)))
    assert "holds inputs of shape (1, 6, 6), not (1, 8, 8); leave --shape out" in refused(
        *data, "x.npy", "--shape", "1,8,8"
    )
    assert "--mean and --std are for --data" in misused("measure", "mlp", "--mean", "1")


def test_normalised_by_channel():
    x = torch.ones(2, 3, 4)
    assert torch.equal(normalised(x, "1,2,3", "1,2,2")[0, :, 0], torch.tensor([0.0, -0.5, -1.0]))
    for mean in ("1,2", "a", "nan", ""):
        with pytest.raises(ValueError, match="--mean must be one number or one a channel"):
            normalised(x, mean, None)
    with pytest.raises(ValueError, match="--std must be positive, got '1,0,1'"):
        normalised(x, None, "1,0,1")
    assert parse_integers("3, 4", "--shape") == (3, 4)
    assert parse_position("3,4") == (3, 4)
    assert parse_position("7, :") == (7, None)


def test_objects_in_an_array_are_not_unpickled(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read"):
        read_array(tmp_path / "x.npy")
    np.savez(tmp_path / "x.npz", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read"):
        read_array(tmp_path / "x.npz")


def test_a_file_that_may_not_be_read_is_not_taken_for_damaged(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.zeros(3))
    monkeypatch.setattr(np, "load", mock.Mock(side_effect=PermissionError("denied")))
    with pytest.raises(PermissionError, match="denied"):
        read_array(tmp_path / "x.npy")
    np.savez(tmp_path / "x.npz", x=np.zeros(3), y=np.zeros(3))
    with pytest.raises(PermissionError, match="denied"):
        read_several(tmp_path / "x.npz")


@pytest.fixture
def images(tmp_path):
    """Three images of three sizes, one of them grey, in two folders, beside something else."""
    image = pytest.importorskip("PIL.Image")
    colours = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    (tmp_path / "deeper").mkdir()
    image.fromarray(colours).save(tmp_path / "b.png")
    image.fromarray(colours[:, :30, 0]).save(tmp_path / "deeper" / "c.PNG")
    image.fromarray(np.full((64, 20, 3), 255, np.uint8)).save(tmp_path / "a.jpg")
    (tmp_path / "readme.txt").write_text("no image")
    return tmp_path, colours


def test_images_are_scaled_and_cropped(images):
    folder, colours = images
    x = read_images(folder, (3, 15, 15))
    assert x.shape == (3, 3, 15, 15)
    assert float(x[0].min()) == 1  # the white one comes first
    assert 0 <= float(x.min()) < 0.5 < float(x.max()) <= 1
    assert torch.equal(x[2, 0], x[2, 1])  # grey stays grey
    same = read_images(folder, (3, 30, 40), number=2)[1]
    np.testing.assert_allclose(same.permute(1, 2, 0) * 255, colours, atol=0.01)
    centre = read_images(folder, (3, 30, 30), number=2)[1]  # fits as it is: only cropped
    np.testing.assert_allclose(centre.permute(1, 2, 0) * 255, colours[:, 5:35], atol=0.01)
    assert read_images(folder, (1, 8, 8)).shape == (3, 1, 8, 8)
    assert read_images(folder / "deeper").shape == (1, 1, 30, 30)


def test_images_of_more_than_eight_bits_keep_their_levels(tmp_path):
    image = pytest.importorskip("PIL.Image")
    deep = np.random.default_rng(0).integers(0, 65536, (12, 12)).astype(np.uint16)
    image.fromarray(deep).save(tmp_path / "a.png")
    np.testing.assert_allclose(read_images(tmp_path)[0, 0], deep / 65535, atol=1e-6)
    assert torch.equal(*read_images(tmp_path, (3, 12, 12))[0, :2])
    fitted = read_images(tmp_path, (1, 6, 6))
    assert float(fitted.mean()) == pytest.approx(float(deep.mean()) / 65535, abs=0.02)
    (tmp_path / "floats").mkdir()
    image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "floats" / "b.tif")
    assert torch.equal(read_images(tmp_path / "floats"), torch.full((1, 1, 4, 4), 0.5))
    image.fromarray(np.full((4, 4), 300.0, np.float32)).save(tmp_path / "floats" / "b.tif")
    with pytest.raises(ValueError, match=r"b.tif cannot be read: its levels reach from 300 to 300 of white"):
        read_images(tmp_path / "floats")
    image.fromarray(np.full((4, 4), 300, np.int32)).save(tmp_path / "floats" / "b.tif")
    with pytest.raises(ValueError, match=r"b.tif cannot be read: its levels are of 32 bits"):
        read_images(tmp_path / "floats")


def test_a_png_whose_checksums_do_not_fit_is_refused(tmp_path):
    image, path = pytest.importorskip("PIL.Image"), tmp_path / "image.png"
    image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"image.png cannot be read"):
        read_images(tmp_path)


def test_no_image_starts_a_program(tmp_path):
    pytest.importorskip("PIL.Image")
    (tmp_path / "x.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(ValueError, match=r"x\.png cannot be read: cannot identify image file"):
        read_images(tmp_path, (3, 8, 8))


def test_only_the_rows_that_are_asked_for_are_taken_from_an_archive(tmp_path, monkeypatch):
    x = np.arange(24.0).reshape(6, 4)
    for name, array in (("rows", x), ("columns", np.asfortranarray(x))):
        np.savez_compressed(tmp_path / f"{name}.npz", inputs=array)
        for number in (2, 9, None):
            np.testing.assert_array_equal(read_array(tmp_path / f"{name}.npz", number), x[:number])
    monkeypatch.setattr("capalloc._runtime.memory.available_bytes", lambda device: 100)
    np.testing.assert_array_equal(read_array(tmp_path / "rows.npz", 2), x[:2])
    with pytest.raises(ValueError, match=r"cannot be read: 6 examples needs .*take fewer with --examples"):
        read_array(tmp_path / "rows.npz", 9)
    with pytest.raises(ValueError, match=r"cannot be read: the array inputs needs .*take a file of fewer"):
        read_array(tmp_path / "rows.npz")


@pytest.mark.parametrize("ending", ["npy", "safetensors"])
def test_only_the_rows_that_are_asked_for_are_taken_from_a_file(tmp_path, monkeypatch, ending):
    x, path = np.arange(24.0).reshape(6, 4), tmp_path / f"x.{ending}"
    np.save(path, x) if ending == "npy" else save_file({"x": x}, path)
    monkeypatch.setattr("capalloc._runtime.memory.available_bytes", lambda device: 100)
    np.testing.assert_array_equal(read_array(path, 2), x[:2])
    with pytest.raises(ValueError, match=r"cannot be read: 6 examples needs .*take fewer with --examples"):
        read_array(path)


def test_numbers_of_the_other_byte_order_are_read(tmp_path):
    x = np.arange(24, dtype=">f4").reshape(6, 4)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", inputs=x)
    for ending in ("npy", "npz"):
        for number in (2, None):
            np.testing.assert_array_equal(read_array(tmp_path / f"x.{ending}", number), x[:number])


def test_pixels_of_eight_bits_tell_a_model_its_shape(folder):
    np.save("pixels.npy", np.random.default_rng(0).integers(0, 255, (30, 1, 4, 4)).astype(np.uint8))
    result = run("propagate", "mlp", "--arg", "width=3", "--data", "pixels.npy", "--solver", "markov")
    assert result.exit_code == 0, result.output
    assert "30 examples of 1 x 4 x 4" in result.stderr


@pytest.mark.parametrize("ending", ["gif", "tif", "webp", "png"])
def test_several_images_in_one_file_are_refused(tmp_path, ending):
    image = pytest.importorskip("PIL.Image")
    frames = [image.fromarray(np.full((4, 4, 3), level, np.uint8)) for level in (0, 200)]
    frames[0].save(tmp_path / f"x.{ending}", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"cannot be read: it holds 2 images; save each in a file of its own"):
        read_images(tmp_path)


@pytest.mark.parametrize("shape", [None, (3, 40000, 40000)])
def test_images_that_do_not_fit_are_refused_before_they_are_made(images, monkeypatch, shape):
    folder, _ = images
    most = 1000 if shape is None else 2**33
    monkeypatch.setattr("capalloc._runtime.memory.available_bytes", lambda device: most)
    with pytest.raises(ValueError, match=r"a\.jpg cannot be read: 3 images of 3 x .* take fewer with --examples"):
        read_images(folder, shape)


def test_a_folder_of_images_for_a_command(images):
    folder, _ = images
    asked = ("--data", str(folder), "--arg", "hidden=[4]", "--solver", "markov")
    result = run("propagate", "lenet", *asked, "--out", str(folder / "x.nc"))
    assert result.exit_code == 0, result.output
    assert "3 examples of 1 x 28 x 28" in result.stderr
    assert capalloc.Allocation.load(folder / "x.nc").capacity.shape == (1, 28, 28)


def test_images_that_are_none(images, monkeypatch):
    folder, _ = images
    with pytest.raises(ValueError, match=r"b.png is 3 x 30 x 40 and .*a.jpg 3 x 64 x 20; give --shape"):
        read_images(folder)
    with pytest.raises(ValueError, match=r"1 or 3 channels, rows and columns, such as 3,224,224, got \(2, 8, 8\)"):
        read_images(folder, (2, 8, 8))
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no image"):
        read_images(folder / "empty")
    (folder / "a.jpg").write_bytes(b"noise")
    with pytest.raises(ValueError, match=r"a\.jpg cannot be read: cannot identify image file"):
        read_images(folder, (3, 8, 8))
    lack(monkeypatch, "PIL")
    with pytest.raises(ModuleNotFoundError, match=r"needs the package Pillow: pip install 'capalloc\[images\]'"):
        read_images(folder, (3, 8, 8))


def given(source: str, arguments: tuple[str, ...], **more: object) -> ModelOptions:
    return ModelOptions(source, arg=list(arguments), **more)


def test_a_configuration_of_images_has_its_shape_and_is_made_to_fit():
    pytest.importorskip("transformers")
    own = read_sources(given("ViTConfig", (*SMALL_VIT, "image_size=8")), QUIET, 2)
    assert own.inputs.shape == (2, 3, 8, 8)
    asked = read_sources(given("transformers:ViTConfig", SMALL_VIT, shape="1,16,16"), QUIET, 2)
    assert asked.model(asked.inputs).logits.shape == (2, 2)
    assert type(asked.model).__name__ == "ViTForImageClassification"
    state = torch.random.get_rng_state()
    again = read_sources(given("ViTConfig", SMALL_VIT, shape="1,16,16"), QUIET, 2)
    assert torch.equal(asked.model(asked.inputs).logits, again.model(again.inputs).logits)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_factory_that_takes_token_ids_gets_random_ones(tmp_path):
    (tmp_path / "text.py").write_text(f"{SEVERAL}{OF_VECTORS}", encoding="utf-8")
    drawn = read_sources(given(f"{tmp_path}/text.py:Ids", (), shape="5"), QUIET, 7).inputs
    assert (drawn.dtype, drawn.shape) == (torch.int64, (7, 5))
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < 9
    assert read_sources(given(f"{tmp_path}/text.py:Vectors", (), shape="5,4"), QUIET, 7).inputs.is_floating_point()


def test_a_configuration_of_text_takes_ids(tmp_path):
    pytest.importorskip("transformers")
    drawn = read_sources(given("GPT2Config", SMALL_GPT), QUIET, 2)
    assert (drawn.inputs.dtype, drawn.inputs.shape) == (torch.int64, (2, 6))
    model = drawn.model.eval()
    vectors = model.model.get_input_embeddings()(drawn.inputs)
    assert torch.equal(model(drawn.inputs).last_hidden_state, model(vectors).last_hidden_state)
    assert read_sources(given("GPT2Config", SMALL_GPT, shape="4"), QUIET, 2).inputs.shape == (2, 4)
    gaussian = read_sources(given("GPT2Config", SMALL_GPT, shape="4,8"), QUIET, 2)
    assert float(gaussian.inputs.std()) > 0.5
    np.save(tmp_path / "ids.npy", np.array([[1, 2, 3], [10, 0, 0]]))
    ids = read_sources(given("GPT2Config", SMALL_GPT, data=tmp_path / "ids.npy"), QUIET, 2)
    assert ids.inputs.tolist() == [[1, 2, 3], [10, 0, 0]]
    with pytest.raises(ValueError, match="--mean and --std are of numbers, and token ids stand for vectors"):
        read_sources(given("GPT2Config", SMALL_GPT, data=tmp_path / "ids.npy", mean="1"), QUIET, 2)
    np.save(tmp_path / "ids.npy", np.array([[1, 2, 11]]))
    with pytest.raises(ValueError, match=r"token ids must be \(examples, tokens\) in 0 .. 10, got .* values 1 .. 11"):
        read_sources(given("GPT2Config", SMALL_GPT, data=tmp_path / "ids.npy"), QUIET, 2)
    head = read_sources(given("GPT2Config", (*SMALL_GPT, "architectures=['GPT2LMHeadModel']")), QUIET, 2)
    assert head.model(head.inputs).logits.shape == (2, 6, 11)
    assert capalloc.propagate(head.model, head.inputs, solver="markov").total > 0


def test_text_models_take_ids(tmp_path):
    for name, arg in (("gpt-tiny", ("depth=1", "heads=2")), ("bert-tiny", ("depth=1",))):
        ids = read_sources(given(name, arg, shape="6", examples=3), QUIET, 2)
        assert ids.inputs.shape == (3, 6)
        assert torch.equal(ids.model(ids.inputs), ids.model(token_table(ids.model)[ids.inputs]))
    np.save(tmp_path / "ids.npy", np.array([[1, 2, 3], [10, 0, 0]], dtype=np.int32))
    read = read_sources(given("gpt-tiny", ("depth=1",), data=tmp_path / "ids.npy"), QUIET, 2)
    assert read.inputs.tolist() == [[1, 2, 3], [10, 0, 0]]
    assert read.model(read.inputs).shape == (2, 3, 1000)
    gaussian = read_sources(given("gpt-tiny", ("depth=1", "heads=2"), shape="6,8"), QUIET, 2)
    assert gaussian.inputs.shape == (2, 6, 8)


def test_a_position_of_a_text_model_is_a_token():
    asked = ("receptive-field", "gpt-tiny", "--arg", "depth=1", "--position", "7", "--json", "--quiet", "--shape")
    by_token = json.loads(run(*asked, "9").stdout)
    assert by_token["settings"]["output_position"] == [7, None]
    (axis,) = by_token["axes"]
    assert (axis["axis"], axis["start"], axis["stop"]) == ("token", 0, 8)
    of_vectors = json.loads(run(*asked, "9,8", "--arg", "heads=2").stdout)
    assert of_vectors["settings"]["output_position"] == [7, None]


def test_configurations_that_are_none(monkeypatch):
    pytest.importorskip("transformers")
    assert "module transformers has no FooConfig" in refused("propagate", "FooConfig")
    assert "transformers refuses this ViTConfig" in refused("propagate", "ViTConfig", "--arg", "hidden_size=wide")
    assert "has no attribute Missing" in refused("propagate", "ViTConfig", "--arg", "architectures=['Missing']")
    lack(monkeypatch, "transformers")
    assert "ViTConfig needs the package transformers: pip install 'capalloc[transformers]'" in refused(
        "propagate", "ViTConfig"
    )


def test_complex_data_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.ones((4, 1, 6, 6), complex))
    assert "x.npy holds complex numbers" in refused("measure", "mlp", "--data", "x.npy")
