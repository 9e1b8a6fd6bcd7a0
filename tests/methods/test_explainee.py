from __future__ import annotations

import importlib.util
import json
import pickle
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from saccade.accel.image import resize_image
from saccade.contracts import ImageSpec, Uint8
from saccade.errors import MissingDependencyError, ModelError
from saccade.methods.explainee import Explainee, fingerprint, guest, load_explainee

SMALL = (64, 64)

MODULE = """
import torch
from torch import nn

from saccade.contracts import ImageSpec


class Small(nn.Module):
    def __init__(self, outputs=3):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2, 1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, outputs)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def build():
    torch.manual_seed(0)
    model = Small()
    model.image_spec = ImageSpec(size=(20, 24), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    model.class_names = ("red", "green", "blue")
    return model


def build_plain():
    torch.manual_seed(0)
    return Small()


def build_either(pretrained=True):
    return nn.Sequential(Small(), nn.Identity() if pretrained else nn.Flatten())


def build_text():
    return "a model"


def build_maps():
    return nn.Conv2d(3, 5, 3)


def build_one_output():
    return Small(1)


class Pair(nn.Module):
    def forward(self, x):
        return x, x


def build_pair():
    return Pair()
"""


def randomised(model: nn.Module, seed: int = 3) -> nn.Module:
    """Every tensor of the state differs from what any library would start with."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.is_floating_point():
            value.normal_(0, 0.1, generator=generator)
    return model.eval()


def pixels(*size: int) -> Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(images)


def smooth_image() -> Uint8:
    """300×400; each channel goes from dark to light once, in its own direction: a pixel aside is a grey level aside."""
    y, x = np.mgrid[0:1:300j, 0:1:400j]
    channels = np.stack([x, y, 0.5 * (1 - x) + 0.5 * y], axis=-1)
    return (channels * 255).round().astype(np.uint8)


def as_input(image: Uint8, spec: ImageSpec) -> np.ndarray:
    scaled = resize_image(image, spec).astype(np.float64) / 255
    return ((scaled - spec.mean) / spec.std).transpose(2, 0, 1)


@pytest.fixture
def module_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's module in the working directory, under a name that nothing else has."""
    name = f"users_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


@pytest.fixture
def small(module_name: str) -> Explainee:
    return load_explainee(f"python:{module_name}:build")


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., tuple[Path, nn.Module]]:
    """A transformers folder of a small ResNet with random weights."""

    def make(**preprocessing: object) -> tuple[Path, nn.Module]:
        from transformers import ResNetConfig, ResNetForImageClassification

        config = ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[1, 1],
            layer_type="basic",
            id2label={0: "ash", 1: "beech", 2: "cedar", 3: "date"},
            label2id={"ash": 0, "beech": 1, "cedar": 2, "date": 3},
        )
        model = randomised(ResNetForImageClassification(config))
        folder = tmp_path / "tree"
        model.save_pretrained(folder)
        if preprocessing:
            (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
        return folder, model

    return make


VIT_STYLE = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 128, "width": 160},
    "resample": 2,
    "do_rescale": True,
    "do_normalize": True,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.6, 0.7, 0.8],
}
CENTRE_CROP = {
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 160},
    "do_center_crop": True,
    "crop_size": {"height": 128, "width": 128},
    "resample": 3,
    "do_rescale": True,
    "do_normalize": True,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.4],
}
CROP_FRACTION = {
    "image_processor_type": "ConvNextImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 128},
    "crop_pct": 0.8,
    "resample": 3,
    "do_rescale": True,
    "do_normalize": True,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.4],
}
BARE_NUMBER = CROP_FRACTION | {"size": 128}
LARGE_SQUASHED = CROP_FRACTION | {"size": {"shortest_edge": 384}}
NOT_NORMALISED = VIT_STYLE | {"do_normalize": False}


# ---- models of each family


def test_a_torchvision_model_gives_the_logits_of_its_saved_weights(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    original = randomised(resnet18(weights=None, num_classes=7))
    save_file(original.state_dict(), tmp_path / "own.safetensors")
    names = [f"kind {index}" for index in range(7)]
    loaded = load_explainee("torchvision:resnet18", tmp_path / "own.safetensors", class_names=names, image_size=SMALL)
    assert torch.equal(logits_of(loaded.model, pixels(*SMALL)), logits_of(original, pixels(*SMALL)))
    assert loaded.class_names == tuple(names)
    assert loaded.image_spec.size == SMALL
    assert loaded.spec == "torchvision:resnet18"
    assert loaded.weights == str((tmp_path / "own.safetensors").resolve())
    assert not loaded.model.training


def test_a_timm_model_gives_the_logits_of_its_saved_weights(tmp_path: Path) -> None:
    import timm

    original = randomised(timm.create_model("resnet18", pretrained=False, num_classes=4))
    torch.save(original.state_dict(), tmp_path / "own.pth")
    loaded = load_explainee("timm:resnet18", tmp_path / "own.pth", class_names=list("abcd"), image_size=SMALL)
    assert torch.equal(logits_of(loaded.model, pixels(*SMALL)), logits_of(original, pixels(*SMALL)))
    assert loaded.class_names == ("a", "b", "c", "d")


def test_a_transformers_folder_gives_the_logits_of_the_transformers_model(
    make_folder: Callable[..., tuple[Path, nn.Module]],
) -> None:
    folder, original = make_folder(**CENTRE_CROP)
    loaded = load_explainee(f"hf:{folder}")
    with torch.no_grad():
        expected = original(pixel_values=pixels(128, 128)).logits
    assert torch.equal(logits_of(loaded.model, pixels(128, 128)), expected)
    assert loaded.class_names == ("ash", "beech", "cedar", "date")


def test_a_transformers_image_spec_is_read_from_the_preprocessor_file(
    make_folder: Callable[..., tuple[Path, nn.Module]],
) -> None:
    folder, _ = make_folder(**CENTRE_CROP)
    assert load_explainee(f"hf:{folder}").image_spec == ImageSpec(
        size=(128, 128), resize="crop", crop=0.8, interpolation="bicubic", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)
    )


def test_a_transformers_model_takes_the_weights_file_that_transformers_saved(
    make_folder: Callable[..., tuple[Path, nn.Module]], tmp_path: Path
) -> None:
    folder, original = make_folder(**CENTRE_CROP)
    other = randomised(type(original)(original.config), seed=8)
    save_file(other.state_dict(), tmp_path / "tuned.safetensors")
    loaded = load_explainee(f"hf:{folder}", tmp_path / "tuned.safetensors")
    with torch.no_grad():
        expected = other(pixel_values=pixels(128, 128)).logits
    assert torch.equal(logits_of(loaded.model, pixels(128, 128)), expected)


def test_a_python_model_is_found_in_the_working_directory_with_its_own_spec_and_names(module_name: str) -> None:
    path_before = list(sys.path)
    loaded = load_explainee(f"python:{module_name}:build")
    assert loaded.image_spec == ImageSpec(size=(20, 24), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert loaded.class_names == ("red", "green", "blue")
    assert torch.equal(
        logits_of(loaded.model, pixels(20, 24)), logits_of(sys.modules[module_name].build(), pixels(20, 24))
    )
    assert sys.path == path_before


def test_a_python_model_without_spec_and_names_gets_the_usual_ones(module_name: str) -> None:
    loaded = load_explainee(f"python:{module_name}:build_plain")
    assert loaded.image_spec == ImageSpec()
    assert loaded.class_names == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize(("weights", "last"), [(None, nn.Identity), ("random", nn.Flatten)])
def test_a_python_builder_is_told_whether_it_should_be_pretrained(
    module_name: str, weights: str | None, last: type
) -> None:
    model = load_explainee(f"python:{module_name}:build_either", weights).model
    assert isinstance(model, nn.Sequential)
    assert isinstance(model[1], last)


@pytest.mark.parametrize("spec", ["torchvision:squeezenet1_1", "timm:mobilenetv3_small_050"])
def test_random_weights_are_new_each_time_and_have_the_number_of_classes_asked_for(spec: str) -> None:
    first, second = (load_explainee(spec, "random", class_names=list("abcde"), image_size=SMALL) for _ in range(2))
    assert logits_of(first.model, pixels(*SMALL)).shape == (2, 5)
    assert first.weights == "random"
    assert first.fingerprint != second.fingerprint


def test_a_transformers_model_is_built_for_the_number_of_class_names(
    make_folder: Callable[..., tuple[Path, nn.Module]],
) -> None:
    folder, _ = make_folder(**CENTRE_CROP)
    loaded = load_explainee(f"hf:{folder}", "random", class_names=["yes", "no"])
    assert logits_of(loaded.model, pixels(128, 128)).shape == (2, 2)
    assert loaded.class_names == ("yes", "no")


def test_torchvision_names_its_own_classes() -> None:
    from torchvision.models import SqueezeNet1_1_Weights

    loaded = load_explainee("torchvision:squeezenet1_1", "random", image_size=SMALL)
    assert loaded.class_names == tuple(SqueezeNet1_1_Weights.DEFAULT.meta["categories"])


def test_other_names_for_all_classes_keep_the_pretrained_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import squeezenet1_1
    from torchvision.models._api import WeightsEnum

    published = randomised(squeezenet1_1(weights=None))
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, *_, **__: published.state_dict())
    names = [f"Klasse {index}" for index in range(1000)]
    loaded = load_explainee("torchvision:squeezenet1_1", class_names=names, image_size=SMALL)
    assert torch.equal(logits_of(loaded.model, pixels(*SMALL)), logits_of(published, pixels(*SMALL)))
    assert loaded.class_names == tuple(names)


@pytest.mark.parametrize("spec", ["torchvision:resnet18", "timm:resnet18"])
def test_pretrained_weights_for_another_number_of_classes_are_refused(spec: str) -> None:
    with pytest.raises(ModelError, match=rf"{spec} have 1000 classes and 2 class names were given.*--weights FILE"):
        load_explainee(spec, class_names=["yes", "no"])


def test_a_transformers_folder_with_another_number_of_classes_is_refused(
    make_folder: Callable[..., tuple[Path, nn.Module]],
) -> None:
    folder, _ = make_folder(**CENTRE_CROP)
    with pytest.raises(ModelError, match=r"have 4 classes and 2 class names were given.*--weights FILE"):
        load_explainee(f"hf:{folder}", class_names=["yes", "no"])


def test_normalise_follows_mean_and_std_of_each_channel(small: Explainee) -> None:
    images = pixels(20, 24)
    expected = (images.double().numpy() - np.reshape((0.1, 0.2, 0.3), (3, 1, 1))) / np.reshape(
        (0.4, 0.5, 0.6), (3, 1, 1)
    )
    np.testing.assert_allclose(small.normalise(images).numpy(), expected, atol=1e-6)


# ---- preprocessing against the libraries' own

# The libraries resize first and cut whole pixels of the small image afterwards; we cut whole pixels of the large image.
# So the box differs by up to a pixel of the small image: here two grey levels at most, 0.04 in normalised units.
# The other rule (the whole image for its centre, or the reverse) is several times further off.
NEAR = 0.05


def distance(image: Uint8, spec: ImageSpec, expected: np.ndarray) -> float:
    assert as_input(image, spec).shape == expected.shape
    return float(np.abs(as_input(image, spec) - expected).mean())


def assert_agrees(spec: ImageSpec, expected: np.ndarray) -> None:
    image = smooth_image()
    near = distance(image, spec, expected)
    assert near < NEAR
    assert distance(image, replace(spec, resize="crop" if spec.resize == "squash" else "squash"), expected) > 3 * near


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mobilenet_v3_small", "efficientnet_b0"])
def test_torchvision_preprocessing_is_that_of_the_weights(name: str) -> None:
    from torchvision.models import get_model_weights

    spec = load_explainee(f"torchvision:{name}", "random").image_spec
    assert_agrees(spec, get_model_weights(name).DEFAULT.transforms()(Image.fromarray(smooth_image())).double().numpy())


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_timm_preprocessing_is_that_of_the_pretrained_configuration(name: str) -> None:
    import timm

    loaded = load_explainee(f"timm:{name}", "random")
    config = timm.data.resolve_data_config({}, model=loaded.model)
    assert_agrees(
        loaded.image_spec, timm.data.create_transform(**config)(Image.fromarray(smooth_image())).double().numpy()
    )


@pytest.mark.parametrize(
    "settings",
    [VIT_STYLE, CENTRE_CROP, CROP_FRACTION, BARE_NUMBER, LARGE_SQUASHED, NOT_NORMALISED],
    ids=["squash", "centre crop", "crop fraction", "bare number", "large", "not normalised"],
)
def test_transformers_preprocessing_is_that_of_the_image_processor(
    settings: dict[str, object], make_folder: Callable[..., tuple[Path, nn.Module]]
) -> None:
    from transformers import AutoImageProcessor

    folder, _ = make_folder(**settings)
    processed = AutoImageProcessor.from_pretrained(folder)(Image.fromarray(smooth_image()), return_tensors="np")
    assert_agrees(load_explainee(f"hf:{folder}").image_spec, processed["pixel_values"][0])


# ---- weights files


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "module", "state_dict and module"])
def test_a_state_dict_is_found_however_it_is_nested(module_name: str, tmp_path: Path, wrap: str) -> None:
    original = randomised(load_explainee(f"python:{module_name}:build").model)
    state = dict(original.state_dict())
    if "module" in wrap:
        state = {f"module.{key}": value for key, value in state.items()}
    for key in ("state_dict", "model"):
        if wrap.startswith(key):
            state = {key: state, "epoch": 3}
    torch.save(state, tmp_path / "own.pth")
    loaded = load_explainee(f"python:{module_name}:build", tmp_path / "own.pth")
    assert torch.equal(logits_of(loaded.model, pixels(20, 24)), logits_of(original, pixels(20, 24)))


def test_a_missing_weights_file_is_named(module_name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no weights file 'nowhere.pth'.*'pretrained' or 'random'"):
        load_explainee(f"python:{module_name}:build", "nowhere.pth")


def test_missing_unknown_and_misshapen_weights_are_all_named(
    module_name: str, small: Explainee, tmp_path: Path
) -> None:
    state = dict(small.model.state_dict())
    del state["conv.bias"]
    state["extra.gain"] = torch.zeros(2)
    state["head.weight"] = torch.zeros(9, 6)
    save_file(state, tmp_path / "own.safetensors")
    with pytest.raises(ModelError) as caught:
        load_explainee(f"python:{module_name}:build", tmp_path / "own.safetensors")
    message = str(caught.value)
    assert "own.safetensors" in message
    assert "1 missing (conv.bias)" in message
    assert "1 that the model does not have (extra.gain)" in message
    assert "head.weight is (9, 6) in the file and (3, 6) in the model" in message


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("how", ["torch.save", "pickle"])
def test_a_pickle_that_holds_an_object_is_refused_and_never_executed(
    module_name: str, tmp_path: Path, how: str
) -> None:
    mark, file = tmp_path / "executed", tmp_path / "own.pth"
    if how == "torch.save":
        torch.save({"conv.weight": torch.zeros(1), "hook": Bomb(mark)}, file)
    else:
        file.write_bytes(pickle.dumps(Bomb(mark), protocol=2))
    with pytest.raises(ModelError, match=r"own.pth' is not a plain state dict.*never executed.*model.state_dict\(\)"):
        load_explainee(f"python:{module_name}:build", file)
    assert not mark.exists()
    if how == "pickle":  # and the bomb is live: whoever does unpickle it sets it off
        pickle.loads(file.read_bytes()).close()
        assert mark.exists()


@pytest.mark.parametrize("content", [b"", b"these are no weights\n", b"\x80\x02"], ids=["empty", "text", "cut short"])
@pytest.mark.parametrize("name", ["own.pth", "own.safetensors"])
def test_a_file_that_holds_no_weights_is_named(module_name: str, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        ModelError, match=rf"(cannot read the weights '.*{name}'.*complete|{name}' is not a plain state dict.*save)"
    ):
        load_explainee(f"python:{module_name}:build", tmp_path / name)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_truncated_weights_file_is_named(module_name: str, small: Explainee, tmp_path: Path, suffix: str) -> None:
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    if suffix == ".pth":
        torch.save(small.model.state_dict(), whole)
    else:
        save_file(small.model.state_dict(), whole)
    cut.write_bytes(whole.read_bytes()[:-40])
    load_explainee(f"python:{module_name}:build", whole)
    with pytest.raises(ModelError, match=rf"cannot read the weights '.*cut{suffix}'"):
        load_explainee(f"python:{module_name}:build", cut)


@pytest.mark.parametrize("content", [torch.zeros(3), {}, {"a": 1.5}, {0: torch.zeros(1)}, [torch.zeros(1)]])
def test_a_file_that_holds_something_other_than_names_to_tensors_is_refused(
    module_name: str, tmp_path: Path, content: object
) -> None:
    torch.save(content, tmp_path / "own.pth")
    with pytest.raises(ModelError, match=r"own.pth' does not hold a state dict.*save model.state_dict\(\)"):
        load_explainee(f"python:{module_name}:build", tmp_path / "own.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(
    module_name: str, small: Explainee, tmp_path: Path, value: float
) -> None:
    state = {key: tensor.clone() for key, tensor in small.model.state_dict().items()}
    state["norm.running_mean"][4] = value
    save_file(state, tmp_path / "own.safetensors")
    with pytest.raises(ModelError, match=r"NaN or infinite values in 'norm.running_mean'"):
        load_explainee(f"python:{module_name}:build", tmp_path / "own.safetensors")


def test_the_reader_of_safetensors_says_when_its_package_is_missing(
    module_name: str, small: Explainee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(small.model.state_dict(), tmp_path / "own.safetensors")
    hide(monkeypatch, "safetensors")
    with pytest.raises(MissingDependencyError, match=r"pip install"):
        load_explainee(f"python:{module_name}:build", tmp_path / "own.safetensors")


# ---- specs that cannot be built


@pytest.mark.parametrize("spec", ["resnet50", "keras:resnet50", "torchvision:", "", ":resnet50"])
def test_a_spec_of_no_known_family_is_answered_with_how_to_write_one(spec: str) -> None:
    with pytest.raises(ModelError, match=rf"'{spec}' is not a model spec; write torchvision:resnet50.*python:"):
        load_explainee(spec)


@pytest.mark.parametrize(("family", "near"), [("torchvision", "resnet18"), ("timm", "resnet18")])
def test_an_unknown_model_is_answered_with_the_nearest(family: str, near: str) -> None:
    with pytest.raises(ModelError, match=rf"{family} has no .*'resnet_18'; did you mean .*{near}"):
        load_explainee(f"{family}:resnet_18", "random")


def test_a_transformers_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"transformers finds no model .*nowhere"):
        load_explainee(f"hf:{tmp_path / 'nowhere'}")


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("", "does not name a function; write python:"),
        (":built", "has no function 'built'; did you mean build"),
        (":build_text", "returned str, not a torch.nn.Module"),
        (":build_maps", r"must give logits of shape \(N, K\) with K ≥ 2, not \(1, 5, 222, 222\)"),
        (":build_one_output", r"must give logits of shape \(N, K\) with K ≥ 2, not \(1, 1\)"),
        (":build_pair", r"must give logits of shape \(N, K\) with K ≥ 2, not tuple"),
    ],
)
def test_a_python_spec_that_gives_no_classifier_says_why(module_name: str, ending: str, message: str) -> None:
    with pytest.raises(ModelError, match=rf"{module_name}.*{message}"):
        load_explainee(f"python:{module_name}{ending}")


def test_a_python_module_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match=r"cannot import 'no_such_module'.*run from its folder or install it"):
        load_explainee("python:no_such_module:build")


def test_a_python_spec_without_a_module_is_refused() -> None:
    with pytest.raises(ModelError, match=r"write python:my_package.models:build"):
        load_explainee("python::build")


def test_class_names_of_another_number_than_the_outputs_are_refused(module_name: str) -> None:
    with pytest.raises(ModelError, match=r"has 3 outputs and 2 class names were given"):
        load_explainee(f"python:{module_name}:build", class_names=["red", "green"])


def test_an_input_size_that_the_model_cannot_take_is_named() -> None:
    with pytest.raises(ModelError, match=r"fails on one image of 50×50 pixels: .*--image-size"):
        load_explainee("timm:vit_tiny_patch16_224", "random", image_size=(50, 50))


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make a package look as if it were not installed."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "saccade.errors.importlib.util.find_spec",
        lambda name, *rest: None if name == package else find_spec(name, *rest),
    )


@pytest.mark.parametrize(
    ("spec", "package"),
    [("torchvision:resnet18", "torchvision"), ("timm:resnet18", "timm"), ("hf:folder", "transformers")],
)
def test_a_missing_package_is_answered_with_a_line_that_installs_it(
    spec: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, package)
    with pytest.raises(MissingDependencyError, match=rf"'{package}' is needed for the model {spec}") as caught:
        load_explainee(spec)
    extra = str(caught.value).partition("pip install 'saccade[")[2].partition("]'")[0]
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    offered = project["optional-dependencies"][extra]
    assert any(requirement.startswith(package) for requirement in offered)


def test_torchvision_weights_that_cannot_be_downloaded_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(
        ModelError, match=r"pretrained weights of torchvision:resnet18: .*no route.*--weights FILE.*random"
    ):
        load_explainee("torchvision:resnet18")


def test_timm_weights_that_cannot_be_downloaded_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    with pytest.raises(ModelError, match=r"pretrained weights of timm:resnet18: .*no route.*--weights FILE.*random"):
        load_explainee("timm:resnet18")


# ---- the explainee is not changed by its guests


def state_of_things(model: nn.Module) -> dict[str, object]:
    things: dict[str, object] = {}
    for name, module in model.named_modules():
        things[f"{name} training"] = module.training
        things[f"{name} hooks"] = [*module._forward_hooks, *module._forward_pre_hooks, *module._backward_hooks]
    for name, parameter in model.named_parameters():
        things[f"{name} requires_grad"] = parameter.requires_grad
        things[f"{name} grad"] = None if parameter.grad is None else parameter.grad.tolist()
    return things | {name: value.tolist() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("fails", [False, True])
def test_a_guest_leaves_modes_gradients_and_hooks_as_it_found_them(small: Explainee, fails: bool) -> None:
    model = small.model
    model.train()
    model.get_submodule("norm").eval()
    model.get_submodule("head").requires_grad_(False)
    model(pixels(20, 24)).sum().backward()
    model.get_submodule("conv").register_forward_hook(lambda *_: None)
    before = state_of_things(model)
    assert before["conv.weight grad"] is not None

    try:
        with guest(model) as frozen:
            assert frozen is model
            assert not any(module.training for module in model.modules())
            assert not any(parameter.requires_grad for parameter in model.parameters())
            images = pixels(20, 24).requires_grad_()
            frozen(images).sum().backward()
            assert images.grad is not None
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert state_of_things(model) == before


def test_the_fingerprint_changes_with_every_tensor_of_the_state(small: Explainee) -> None:
    seen = {fingerprint(small.model)}
    state = small.model.state_dict()
    for value in state.values():
        value.view(-1)[-1] += 1
        seen.add(fingerprint(small.model))
    assert len(seen) == 1 + len(state)


def test_the_fingerprint_changes_with_the_smallest_step_of_one_weight(small: Explainee) -> None:
    before = fingerprint(small.model)
    weight = small.model.state_dict()["conv.weight"].view(-1)
    weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))
    assert fingerprint(small.model) != before


def test_the_fingerprint_does_not_change_with_modes_but_with_a_name(small: Explainee) -> None:
    assert small.fingerprint == fingerprint(small.model)
    assert fingerprint(small.model.train().requires_grad_(False)) == small.fingerprint
    assert fingerprint(nn.Sequential(small.model)) != small.fingerprint
