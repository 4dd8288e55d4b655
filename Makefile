# make demo: the whole path on a simulated cohort. make tour: scripts 4, 5 and 6 on what it made.
# make curve: what a few labelled (simulated) children are worth. make test: the whole test suite.
PYTHON ?= python3
RUN := .venv/bin/python
INSTALLED := .venv/.installed
export TQDM_MININTERVAL := 1

.PHONY: demo tour curve test lint clean

demo: $(INSTALLED)
	$(RUN) 0_simulate_cohort.py --config configs/demo/simulate.yaml
	$(RUN) 1_prepare_dataset.py --config configs/demo/prepare.yaml
	$(RUN) 2_pretrain_model.py --config configs/demo/pretrain.yaml
	$(RUN) 3_train_classifier.py --config configs/demo/probe.yaml

tour: demo
	$(RUN) 4_score_recording.py demo/recordings/Sleep_Data/900001_900001.edf --config configs/demo/score.yaml
	$(RUN) 5_explore_embeddings.py --config configs/demo/explore.yaml
	$(RUN) 6_generate_signals.py --config configs/demo/generate.yaml

curve: $(INSTALLED)
	$(RUN) 0_simulate_cohort.py --config configs/curve/simulate.yaml
	$(RUN) 2_pretrain_model.py --config configs/curve/pretrain.yaml
	$(RUN) 3_train_classifier.py --config configs/curve/probe.yaml

test: $(INSTALLED) lint
	$(RUN) -m pytest -n 2 --dist loadfile

lint: $(INSTALLED)
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .

$(INSTALLED): requirements.txt requirements-run.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

clean:
	rm -rf demo .pytest_cache .ruff_cache
