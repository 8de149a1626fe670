#!/bin/sh
# README.md from nbs/index.ipynb, on standard output: Markdown as it stands, code without the cells that are tagged `remove`.
cd "$(dirname "$0")"
jupyter nbconvert --log-level ERROR --to markdown --stdout index.ipynb \
  --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_cell_tags=remove \
  --TagRemovePreprocessor.remove_input_tags=remove-input | sed -e 's#](\.\./#](#g' -e 's#src="\.\./#src="#g' -e 's#](\([0-9a-z_/]*\.ipynb\))#](nbs/\1)#g' | cat -s
