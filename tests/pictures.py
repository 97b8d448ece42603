"""Pictures for tests, and archives that hold them, as bytes."""

import io
import tarfile
import zipfile

import numpy as np
from PIL import Image


def photo(seed=0, width=48, height=40):
    """A smooth random picture: noise enlarged, so that it survives JPEG."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(seed=0, **size):
    return encoded(photo(seed, **size))


def tar_bytes(members, kind="w"):
    """A tar of (name, bytes) or ready TarInfo members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=kind) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                name, data = member
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zip_bytes(members, compression=zipfile.ZIP_DEFLATED):
    """A zip of {name: bytes}, or of such pairs."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in dict(members).items():
            archive.writestr(name, data)
    return buffer.getvalue()
