"""Unpacks wheels into a libtorch folder: libraries side by side in lib/, headers in include/, licences in licences/.

Usage: unpack.py WHEELS LIBTORCH KEEP LEAVE, where KEEP and LEAVE are patterns, separated by spaces, of paths in a wheel.
"""

import os
import shutil
import sys
import zipfile
from fnmatch import fnmatchcase

wheels, libtorch, keep, leave = sys.argv[1], sys.argv[2], sys.argv[3].split(), sys.argv[4].split()

for name in sorted(os.listdir(wheels)):
    with zipfile.ZipFile(os.path.join(wheels, name)) as wheel:
        for member in wheel.infolist():
            path = member.filename
            if not any(fnmatchcase(path, pattern) for pattern in keep):
                continue
            if member.is_dir() or any(fnmatchcase(path, pattern) for pattern in leave):
                continue
            if ".." in path.split("/"):
                sys.exit(f"{name}: {path}: leads out of the wheel")
            if path.startswith("torch/include/"):
                target = os.path.join(libtorch, path.removeprefix("torch/"))
            elif ".dist-info/" in path:
                project = path.split("-")[0]
                name = path.split(".dist-info/")[1].removeprefix("licenses/").replace("/", "-")
                target = os.path.join(libtorch, "licences", f"{project}-{name}")
            else:
                target = os.path.join(libtorch, "lib", os.path.basename(path))
            os.makedirs(os.path.dirname(target), exist_ok=True)
            # Reading to the end checks the checksum of the archive.
            with wheel.open(member) as source, open(target, "wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)

# One call for ten thousand headers: to sync each of them takes minutes on a slow disk.
os.sync()
