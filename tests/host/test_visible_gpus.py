"""The one reader of CUDA_VISIBLE_DEVICES: every form of an entry is understood, or refused by its name."""

from __future__ import annotations

import pytest

from gpucheck.host.visible_gpus import Gpu, Instance, alone, parse_listing, visible

PLAIN = (
    Gpu("0", "GPU-aaaa1111-0000", "NVIDIA H200"),
    Gpu("1", "GPU-aaaa2222-0000", "NVIDIA H200"),
    Gpu("2", "GPU-cccc3333-0000", "NVIDIA A100"),
)
LISTED = """\
GPU 0: NVIDIA H200 (UUID: GPU-aaaa1111-0000)
  MIG 3g.71gb     Device  0: (UUID: MIG-11110000-0000)
  MIG 1c.3g.71gb  Device  1: (UUID: MIG-GPU-aaaa1111-0000/2/0)
GPU 1: NVIDIA A100 (80GB) (UUID: GPU-bbbb2222-0000)
WARNING: infoROM is corrupted at gpu 0000:01:00.0
"""
SPLIT = parse_listing(LISTED).gpus


def test_a_listing_is_read_with_its_instances_and_its_remarks() -> None:
    listing = parse_listing(LISTED)
    instances = (Instance("3g.71gb", "MIG-11110000-0000"), Instance("1c.3g.71gb", "MIG-GPU-aaaa1111-0000/2/0"))
    assert listing.gpus[0] == Gpu("0", "GPU-aaaa1111-0000", "NVIDIA H200", instances)
    assert listing.gpus[1] == Gpu("1", "GPU-bbbb2222-0000", "NVIDIA A100 (80GB)")
    assert listing.remarks == ("WARNING: infoROM is corrupted at gpu 0000:01:00.0",)
    assert parse_listing("") == parse_listing("\n") and not parse_listing("").gpus


@pytest.mark.parametrize(
    ("value", "numbers"),
    [
        (None, "012"),
        ("0,1,2", "012"),
        (" 2 , 0 ", "20"),
        ("GPU-cccc", "2"),
        ("GPU-aaaa1111-0000,2", "02"),
        ("1,", "1"),
    ],
)
def test_numbers_uuids_and_heads_of_uuids_are_understood(value: str | None, numbers: str) -> None:
    left = visible(PLAIN, value)
    assert "".join(device.gpu.index for device in left.devices) == numbers
    assert not left.problem and not left.hides_all


@pytest.mark.parametrize("value", ["", " ", "-1"])
def test_nothing_and_minus_one_hide_every_gpu_on_purpose(value: str) -> None:
    left = visible(PLAIN, value)
    assert left.hides_all and not left.devices and not left.problem


@pytest.mark.parametrize(
    ("value", "numbers", "words"),
    [
        ("7", "", "entry '7' names no GPU here"),
        ("0,9,1", "0", "entry '9' names no GPU here; CUDA hides it and every entry behind it"),
        ("1,-1,0", "1", "entry '-1' names no GPU here; CUDA hides it and every entry behind it"),
        ("GPU-9999", "", "entry 'GPU-9999' names no GPU here"),
        ("GPU-aaaa", "", "entry 'GPU-aaaa' is the head of 2 UUIDs, of GPUs 0, 1"),
        ("aaaa1111", "", "entry 'aaaa1111' names no GPU here"),
        ("0,,1", "0", "entry '' is empty; CUDA hides it"),
        ("1,0,1", "", "entry '1' names GPU 1 again"),
        ("0,GPU-aaaa1111", "", "entry 'GPU-aaaa1111' is '0' again"),
        ("00", "", "entry '00' names no GPU here"),
        ("NoDevFiles", "", "entry 'NoDevFiles' names no GPU here"),
        ("MIG-11110000-0000", "", "entry 'MIG-11110000-0000' names no MIG instance here"),
        ("all", "", "entry 'all' names no GPU here"),
    ],
)
def test_an_entry_that_names_nothing_is_refused_by_name_with_what_cuda_leaves(
    value: str, numbers: str, words: str
) -> None:
    left = visible(PLAIN, value)
    assert "".join(device.gpu.index for device in left.devices) == numbers
    assert left.problem.startswith(f"CUDA_VISIBLE_DEVICES={value!r}: ") and words in left.problem
    assert left.advice


def test_what_to_do_names_what_there_is() -> None:
    assert "GPU 2 (GPU-cccc3333-0000)" in visible(PLAIN, "7").advice
    assert "MIG instance 3g.71gb of GPU 0 (MIG-11110000-0000)" in visible(SPLIT, "7").advice
    assert "Slurm" in visible(PLAIN, "NoDevFiles").advice and "no GPU" in visible((), "0").advice


@pytest.mark.parametrize(
    ("value", "profile"),
    [("MIG-11110000-0000", "3g.71gb"), ("MIG-GPU-aaaa1111-0000/2/0", "1c.3g.71gb"), ("0", "3g.71gb")],
)
def test_a_mig_instance_is_one_device_in_both_forms_and_by_its_gpu(value: str, profile: str) -> None:
    left = visible(SPLIT, value)
    (device,) = left.devices
    assert device.instance and device.instance.profile == profile and not left.problem
    assert device.name == f"NVIDIA H200 MIG {profile}" and f"MIG instance {profile} of GPU 0" in device.words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("MIG-22220000-0000", "entry 'MIG-22220000-0000' names no MIG instance here"),
        ("MIG-1111", "entry 'MIG-1111' names no MIG instance here"),
        ("MIG-GPU-aaaa1111-0000/9/0", "names GPU 0's instance by numbers, which nvidia-smi -L does not list"),
        ("MIG-11110000-0000,MIG-GPU-aaaa1111-0000/2/0", "names 2 devices, MIG instance 3g.71gb"),
        ("MIG-11110000-0000,1", "names 2 devices"),
    ],
)
def test_instances_that_are_not_there_or_cannot_be_seen_together_are_refused(value: str, words: str) -> None:
    assert words in visible(SPLIT, value).problem


def test_without_the_variable_cuda_shows_whole_gpus_or_one_instance() -> None:
    assert [device.words for device in visible(SPLIT, None).devices] == ["GPU 1"]
    (alone_,) = visible(SPLIT[:1], None).devices
    assert alone_.instance == SPLIT[0].instances[0]


@pytest.mark.parametrize(
    ("value", "place", "left"),
    [(None, 3, "3"), ("", 0, "0"), ("4,GPU-b", 1, "GPU-b"), (" 2 ,0,", 0, "2"), ("MIG-a", 0, "MIG-a")],
)
def test_one_device_of_a_value_alone(value: str | None, place: int, left: str) -> None:
    assert alone(value, place) == left
