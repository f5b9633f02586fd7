"""DINOv2 networks that are published for download: where, and what their files must be."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Published:
    """A network on Hugging Face.

    Attributes:
        repository, revision: where, and the commit that never changes.
        sha256: of its `model.safetensors`; None where only the server knows.
    """

    repository: str
    revision: str
    sha256: str | None = None

    @property
    def url(self) -> str:
        """The file's address; `HF_ENDPOINT` names a mirror, as for Hugging Face's own tools."""
        endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        return f"{endpoint}/{self.repository}/resolve/{self.revision}/model.safetensors"


PUBLISHED: Final[dict[str, Published]] = {
    "dinov2-small": Published(
        "facebook/dinov2-small", "ed25f3a31f01632728cabb09d1542f84ab7b0056",
        "ae1e99fcefd534ed978cdeb8326f08030c96e28b7a81ffcbc98a857c84d14be1",
    ),
    "dinov2-base": Published(
        "facebook/dinov2-base", "f9e44c814b77203eaa57a6bdbbd535f21ede1415",
        "d73036b56966966d07975d696bde331762f37297e2f095de8cea0040c3aa0841",
    ),
    "dinov2-large": Published(
        "facebook/dinov2-large", "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c",
        "399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23",
    ),
    "dinov2-with-registers-small": Published(
        "facebook/dinov2-with-registers-small", "0d9846e56b43a21fa46d7f3f5070f0506a5795a9"
    ),
    "dinov2-with-registers-base": Published(
        "facebook/dinov2-with-registers-base", "a1d738ccfa7ae170945f210395d99dde8adb1805",
        "7a6f7b3b9fa4b8732e707476a03cd6cdce210048582f21aafb7991c17d98e362",
    ),
    "dinov2-with-registers-large": Published(
        "facebook/dinov2-with-registers-large", "e4c89a4e05589de9b3e188688a303d0f3c04d0f3"
    ),
}  # fmt: skip
"""Networks by the name of their file, all under Apache-2.0."""
