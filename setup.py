"""What pyproject.toml cannot say: the wheel carries weights/, the packaged network, within the package."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# The card goes with the network; a checkout may be without.
PACKAGED = [*Path("weights").glob("*.safetensors"), *Path("weights").glob("README.md")]


class BuildPy(build_py):
    """Copies the files; an editable install reads them where they lie."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for path in PACKAGED:
                target = Path(self.build_lib, "hrnetpp_lib", path)
                self.mkpath(str(target.parent))
                self.copy_file(str(path), str(target))

    def get_source_files(self):  # of the source distribution
        return super().get_source_files() + [str(path) for path in PACKAGED]


setup(cmdclass={"build_py": BuildPy})
