#!/bin/sh
# Build the documentation site into out/site; a broken link, or a page that the navigation has not, is an error.
set -eu
cd "$(dirname "$0")/.."
.venv/bin/uv pip install --quiet --python .venv/bin/python -r requirements/docs.txt
rm -rf build/docs
mkdir -p build/docs
# What is being written counts, too: the files that git knows of or would take.
git ls-files --cached --others --exclude-standard '*.md' docs config LICENSE benchmarks launch pyproject.toml |
    grep -v -e '^benchmarks/data/' -e '^\.github/' | while read -r file; do
    [ ! -e "$file" ] || cp --parents "$file" build/docs
done
NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict
echo "docs: out/site/index.html"
