from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import requests

from gpucheck.library.index import Wheel, find_wheels, normalise, same_version
from gpucheck.library.pip_settings import PipSettings, address
from gpucheck.model.errors import InfrastructureError, UsageError


def find(*indexes: str, version: str = "1.0") -> list[Wheel]:
    settings = PipSettings(tuple(address(url) for url in indexes), timeout=5)
    return find_wheels("My_Pack", version, settings, requests.Session())


def page(index: Any, text: str, kind: str = "text/html; charset=utf-8") -> None:
    index.pages["/simple/my-pack/"] = kind, text


def test_versions() -> None:
    assert normalise("My__Pack.x") == "my-pack-x"
    assert same_version("1.0.0", "1.0") and same_version("1.0+cu129", "1.0") and same_version("1.0RC1", "1.0rc1")
    assert not same_version("1.0.1", "1.0") and not same_version("1.0", "1.0+cu129") and not same_version("10", "1")


def test_html_links_best_first(index: Any) -> None:
    names = (
        "my_pack-1.0-py3-none-any.whl",
        "my_pack-1.0-cp38-abi3-manylinux_2_28_aarch64.whl",
        "my_pack-1.0-cp38-abi3-manylinux_2_28_x86_64.whl",
        "my_pack-1.0-2-cp38-abi3-manylinux_2_28_x86_64.whl",
        "my_pack-1.0%2Bcu1-cp38-abi3-manylinux_2_28_x86_64.whl",
        "my_pack-1.0.1-py3-none-any.whl",
        "my_pack_more-1.0-py3-none-any.whl",
        "my_pack-1.0.tar.gz",
    )
    links = "".join(f"<a href='../../f/{name}#sha256=1&amp;x'>text</a>" for name in names)
    page(
        index,
        links
        + "<a href='https://other/my_pack-1.0-3-py3-none-win_amd64.whl' data-yanked>x</a><a>-</a><a href='http://[x'>",
    )
    found = find(index.url)
    assert [wheel.filename.removeprefix("my_pack-1.0") for wheel in found] == [
        "-2-cp38-abi3-manylinux_2_28_x86_64.whl",
        "-cp38-abi3-manylinux_2_28_x86_64.whl",
        "-cp38-abi3-manylinux_2_28_aarch64.whl",
        "-py3-none-any.whl",
        "+cu1-cp38-abi3-manylinux_2_28_x86_64.whl",
        "-3-py3-none-win_amd64.whl",
    ]
    assert found[1].address.url == index.url.removesuffix("/simple") + f"/f/{names[2]}"
    assert [wheel.yanked for wheel in found] == [False] * 5 + [True]
    assert found[-1].address.url == "https://other/my_pack-1.0-3-py3-none-win_amd64.whl"


def test_json_page(index: Any) -> None:
    files = [
        {"url": "/f/my_pack-1.0-py3-none-any.whl", "filename": "x", "yanked": False, "hashes": {}},
        {"url": "/f/my_pack-1.0-1-py3-none-any.whl", "filename": "x", "yanked": "broken"},
    ]
    page(index, json.dumps({"files": files}), "application/vnd.pypi.simple.v1+json")
    assert [(wheel.filename, wheel.yanked) for wheel in find(index.url)] == [
        ("my_pack-1.0-py3-none-any.whl", False),
        ("my_pack-1.0-1-py3-none-any.whl", True),
    ]
    page(index, "[]", "application/json")
    with pytest.raises(InfrastructureError, match="not a project page"):
        find(index.url)


def test_file_indexes(tmp_path: Path) -> None:
    wheel = "my_pack-1.0-py3-none-any.whl"
    for folder in ("pages/my-pack", "folders/my-pack"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "pages/my-pack/index.html").write_text(f'<a href="../../files/{wheel}">')
    (tmp_path / "folders/my-pack" / wheel).touch()
    assert find((tmp_path / "pages").as_uri())[0].address.url == (tmp_path / "files" / wheel).as_uri()
    assert find((tmp_path / "folders").as_uri())[0].address.url == (tmp_path / "folders/my-pack" / wheel).as_uri()
    with pytest.raises(UsageError, match="no wheel of My_Pack"):
        find((tmp_path / "nothing").as_uri())


def test_a_later_index_is_asked_where_the_first_cannot_help(index: Any, tmp_path: Path) -> None:
    page(index, '<a href="my_pack-1.0-py3-none-any.whl">')
    assert find(tmp_path.as_uri(), "http://127.0.0.1:9/simple", index.url)[0].version == "1.0"


def test_missing_release_names_the_newest(index: Any) -> None:
    page(index, "".join(f'<a href="my_pack-0.{minor}-py3-none-any.whl">' for minor in range(12)))
    with pytest.raises(UsageError, match="0.9, 0.10, 0.11\n") as caught:
        find(index.url)
    assert "path:DIR" in str(caught.value)


def test_an_index_that_cannot_be_asked_is_no_proof_of_absence(index: Any) -> None:
    page(index, '<a href="my_pack-0.1-py3-none-any.whl">')
    with pytest.raises(InfrastructureError, match="http://127.0.0.1:9  cannot be reached") as caught:
        find(index.url, "http://user:s3cret@127.0.0.1:9/simple")
    assert "s3cret" not in str(caught.value)
    with pytest.raises(InfrastructureError, match="no-index"):
        find()


def test_a_refusal_is_told(index: Any) -> None:
    index.password = "right"
    page(index, '<a href="my_pack-1.0-py3-none-any.whl">')
    with pytest.raises(InfrastructureError, match="answered 401"):
        find(index.url)
    with_password = index.url.replace("://", "://user:right@")
    (wheel,) = find(with_password)
    assert wheel.address.auth == ("user", "right") and "right" not in repr(wheel)


def test_credentials_do_not_follow_to_another_host(index: Any) -> None:
    index.password = "right"
    page(index, '<a href="http://localhost:1/my_pack-1.0-py3-none-any.whl">')
    (wheel,) = find(index.url.replace("://", "://user:right@"))
    assert wheel.address.auth is None
