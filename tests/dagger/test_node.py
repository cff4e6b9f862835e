"""The identity of the node: one file a host, made once, whoever comes first."""

from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from otel_timespan.dagger.places import node


def _create(folder: str, go: Any, results: Any) -> None:
    go.wait()
    results.put(node.read_or_create(Path(folder)))


class TestNodeUuid:
    def test_it_is_made_once(self, tmp_path: Path) -> None:
        """The second reader gets what the first made; nothing else is left behind."""
        first = node.read_or_create(tmp_path)
        assert node.read_or_create(tmp_path) == first
        assert len(list(tmp_path.iterdir())) == 1

    def test_processes_that_start_together_agree(self, tmp_path: Path) -> None:
        """Racing creators end up with one uuid."""
        spawn = multiprocessing.get_context("spawn")
        go, results = spawn.Event(), spawn.Queue()
        racers = [spawn.Process(target=_create, args=(str(tmp_path), go, results)) for _ in range(3)]
        for racer in racers:
            racer.start()
        go.set()
        seen = {results.get(timeout=60) for _ in racers}
        for racer in racers:
            racer.join()
        assert len(seen) == 1

    def test_threads_that_start_together_agree(self, tmp_path: Path) -> None:
        """Racing threads end up with one uuid, too."""
        barrier, seen = threading.Barrier(8), set()

        def create() -> None:
            barrier.wait()
            seen.add(node.read_or_create(tmp_path))

        threads = [threading.Thread(target=create) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(seen) == 1

    @pytest.mark.parametrize("content", ["", "nonsense", "\xff", "1234"])
    def test_a_damaged_file_is_passed_over(self, tmp_path: Path, content: str) -> None:
        """Damage is not repaired, as two repairers would disagree: all take the next name."""
        node.read_or_create(tmp_path)
        (damaged,) = tmp_path.iterdir()
        damaged.write_text(content, encoding="latin-1")
        again = node.read_or_create(tmp_path)
        assert node.read_or_create(tmp_path) == again
        assert damaged.read_text(encoding="latin-1") == content

    def test_a_planted_link_is_not_followed(self, tmp_path: Path) -> None:
        """A symbolic link under our name is passed over, dangling ones too."""
        node.read_or_create(tmp_path)
        (path,) = tmp_path.iterdir()
        target = tmp_path / "elsewhere"
        path.rename(target)
        os.symlink(target, path)
        again = node.read_or_create(tmp_path)
        assert again != target.read_text()
        target.unlink()
        assert node.read_or_create(tmp_path) == again

    def test_without_hard_links(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the file system has no hard links a rename does."""

        def unsupported(*_: Any) -> None:
            raise OSError("not supported")

        monkeypatch.setattr(os, "link", unsupported)
        first = node.read_or_create(tmp_path)
        assert node.read_or_create(tmp_path) == first
        assert len(list(tmp_path.iterdir())) == 1

    def test_without_a_folder_it_is_derived(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An unusable temporary folder costs a warning; all processes still agree."""
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "missing"))
        assert node.node_uuid.__wrapped__() == node.node_uuid.__wrapped__()
        assert "no node uuid can be kept" in caplog.text
