"""One source of options: both spellings, checks, the nearest flag, and the round trip through the saved file."""

from __future__ import annotations

import json
import shlex

import pytest

from options import describe, load_options, parse_data_command, parse_options, save_options
from options.definitions import OPTIONS, options_of
from options.parser import FROM_RUN
from util.errors import UserError

PUBLISHED_TRAIN = (
    "--dataroot data --name SEG --gpu_ids 0 --display_id 0 --lambda_L1 60 --niter 100 "
    "--niter_decay 150 --pool_size 32 --loadSize 300 --fineSize 300"
)
PUBLISHED_TEST = "--dataroot data --name SEG --gpu_ids 0 --display_id 0 --loadSize 300 --fineSize 300"


def parse(line, command="train"):
    return parse_options(command, shlex.split(line), prog="prog", description="")


def test_the_published_commands_parse_as_written():
    train = parse(PUBLISHED_TRAIN)
    assert (train.lambda_L1, train.niter, train.niter_decay, train.pool_size) == (60.0, 100, 150, 32)
    assert (train.loadSize, train.fineSize, train.gpu_ids, train.display_id) == (300, 300, "0", 0)
    assert parse(PUBLISHED_TEST, "test").name == "SEG"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--loadSize 320", "--load_size 320"),
        ("--fineSize 256", "--crop_size 256"),
        ("--niter 7", "--n_epochs 7"),
        ("--niter_decay 9", "--n_epochs_decay 9"),
        ("--batchSize 3", "--batch_size 3"),
    ],
)
def test_both_spellings_mean_the_same(old, new):
    assert parse(f"--dataroot d {old}").values() == parse(f"--dataroot d {new}").values()
    assert parse(f"--dataroot d {old}").non_defaults().keys() - {"dataroot"}


def test_names_are_unique_and_every_option_explains_itself():
    flags = [flag for option in OPTIONS for flag in (option.name, *option.spellings)]
    assert len(flags) == len(set(flags))
    assert all(len(option.help) > 15 and option.help.endswith(".") for option in OPTIONS)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--dataroot d --lamda_L1 3", "did you mean --lambda_L1?"),
        ("--dataroot d --loadsize 300", "did you mean --loadSize?"),
        ("--dataroot d --nither 3", "did you mean --niter?"),
        ("--dataroot d --which_epoch best", "unknown option --which_epoch"),
        ("--dataroot d --niter five", "must be a whole number"),
        ("--dataroot d --niter -3", "must be 0 or more"),
        ("--dataroot d --lr nan", "must be 0 or more"),
        ("--dataroot d --lambda_L1 inf", "must be 0 or more"),
        ("--dataroot d --gpu_ids abc", "'abc' must be -1 (CPU) or different GPU numbers"),
        ("--dataroot d --seed -1", "must be a whole number from 0 to 4294967295"),
        ("--dataroot d --seed 4294967296", "must be a whole number from 0 to 4294967295"),
        ("--dataroot d --seed 1.5", "must be a whole number from 0 to 4294967295"),
        ("--dataroot d --batchSize 1 --fineSize 127", "batch normalisation cannot learn from one image of this size"),
        ("--dataroot d --gpu_ids 0,0", "different GPU numbers"),
        ("--dataroot d --gan_mode wgan", "invalid choice"),
        ("--dataroot d --gate_thresholds 0.8,0.9", "three numbers"),
        ("--dataroot d --gate_thresholds 0.8,0.9,1.9", "between 0 and 1"),
        ("--dataroot d --name ../../etc", "plain folder name"),
        ("--dataroot d --name .hidden", "plain folder name"),
        ("--dataroot d --val_fraction 0.6 --test_fraction 0.6", "leave nothing to train on"),
        ("--dataroot d --niter 0 --niter_decay 0", "at least one epoch"),
        ("--name SEG", "--dataroot is missing"),
    ],
)
def test_a_bad_line_is_one_clear_error(line, words):
    with pytest.raises(UserError) as error:
        parse(line)
    assert words in str(error.value)


def test_a_crop_larger_than_the_image_names_both_flags():
    with pytest.raises(UserError, match="--fineSize 300 is larger than --loadSize 256") as error:
        parse("--dataroot d --loadSize 256 --fineSize 300")
    assert "--loadSize 300 or --fineSize 256" in str(error.value)


def test_the_largest_seed_and_the_smallest_batch():
    assert parse(f"--dataroot d --seed {2**32 - 1}").seed == 2**32 - 1
    assert parse("--dataroot d --batchSize 1 --fineSize 128").batchSize == 1
    assert parse("--dataroot d --batchSize 2 --fineSize 64").fineSize == 64
    assert parse("--dataroot d --batchSize 1 --fineSize 64", "test").batchSize == 1  # a test learns nothing


def test_a_split_named_twice_is_judged_once():
    assert parse("--dataroot d --splits test,train,test", "test").splits == ("test", "train")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"--name {'n' * 201}", "at most 200 bytes"),
        (f"--name {chr(0x1F600) * 51}", "at most 200 bytes"),
        ("--which_epoch \N{SUPERSCRIPT TWO}", "must be latest, best or the number"),
        (f"--which_epoch {'1' * 300}", "must be latest, best or the number"),
        ("--loadSize 8193", "from 64 to 8192"),
        ("--loadSize 8192 --fineSize 4097", "from 64 to 4096"),
    ],
)
def test_what_no_file_or_memory_could_hold_is_refused(line, words):
    with pytest.raises(UserError, match=words):
        parse(f"--dataroot d {line}", "predict")


def test_the_longest_names_and_largest_sides_are_taken():
    taken = parse(f"--dataroot d --name {'n' * 200} --which_epoch 999999999 --loadSize 8192 --fineSize 4096", "predict")
    assert (len(taken.name), taken.which_epoch, taken.loadSize) == (200, "999999999", 8192)


def test_non_defaults_are_marked():
    lines = describe(parse("--dataroot d --niter 7")).splitlines()
    marked = {line.split(":")[0].strip("* ") for line in lines if line.startswith("*")}
    assert marked == {"dataroot", "niter"}
    assert any("niter: 7" in line and "[default: 100]" in line for line in lines)


def test_help_shows_every_option_in_its_group(capsys):
    for command in ("train", "test", "predict"):
        with pytest.raises(SystemExit) as stop:
            parse("--help", command)
        assert stop.value.code == 0
        text = capsys.readouterr().out
        for option in options_of(command):
            assert f"--{option.name}" in text
            assert option.group in text


def test_saved_options_come_back_equal(tmp_path):
    options = parse("--dataroot 'a b/ü' --niter 3 --gate_thresholds 0.5,0.6,0.7 --no_augment --lr 0.001 --gpu_ids -1")
    path = tmp_path / "options.json"
    save_options(path, options)
    loaded = load_options(path)
    expected = {k: v for k, v in options.values().items() if k in loaded}
    assert loaded == expected
    assert set(options.values()) - set(loaded) == {"config", "continue_train", "overwrite", "gpu_ids"}
    again = parse(f"--config {shlex.quote(str(path))} --gpu_ids -1")
    assert {**again.values(), "config": ""} == options.values()


def test_the_command_line_goes_over_the_saved_file(tmp_path):
    path = tmp_path / "options.json"
    save_options(path, parse("--dataroot d --niter 3 --seed 5"))
    again = parse(f"--config {path} --niter 4")
    assert (again.niter, again.seed, again.dataroot) == (4, 5, "d")


def test_continuing_takes_up_the_run_s_own_options(tmp_path):
    (tmp_path / "R").mkdir()
    save_options(tmp_path / "R" / "options.json", parse("--dataroot d --niter 3 --preset small"))
    again = parse(f"--continue_train --name R --checkpoints_dir {tmp_path}")
    assert (again.dataroot, again.niter, again.preset, again.continue_train) == ("d", 3, "small", True)


def test_continuing_without_the_run_s_options_is_refused(tmp_path):
    (tmp_path / "R").mkdir()
    line = f"--dataroot d --continue_train --name R --checkpoints_dir {tmp_path}"
    assert parse(line).continue_train  # nothing saved: the training itself says so
    (tmp_path / "R" / "latest_state.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"R/options\.json is missing"):
        parse(line)
    save_options(tmp_path / "copy.json", parse("--dataroot d --niter 3"))
    assert parse(f"{line} --config {tmp_path / 'copy.json'}").niter == 3


def test_a_test_takes_sizes_and_seed_from_the_run(tmp_path):
    line = f"--dataroot d --name R --checkpoints_dir {tmp_path}"
    untouched = parse(line, "test")
    assert (untouched.loadSize, untouched.from_run) == (300, ())
    (tmp_path / "R").mkdir()
    trained = "--dataroot t --loadSize 320 --fineSize 256 --synthetic_count 60 --seed 7 --batchSize 3 --deterministic"
    trained += " --severity_from haemoglobin --chronic_below 7 --normal_from 13"
    save_options(tmp_path / "R" / "options.json", parse(trained))
    options = parse(line, "test")
    assert (options.loadSize, options.fineSize, options.synthetic_count, options.seed) == (320, 256, 60, 7)
    assert (options.dataroot, options.batchSize, options.deterministic) == ("d", 32, False)
    assert (options.severity_from, options.chronic_below, options.normal_from) == ("haemoglobin", 7, 13)
    shown = [text.split(":")[0].strip("* ") for text in describe(options).splitlines() if "[from the run]" in text]
    assert sorted(shown) == sorted(FROM_RUN)
    over = parse(f"{line} --fineSize 300 --seed 0", "test")
    assert (over.loadSize, over.fineSize, over.seed) == (320, 300, 0)
    assert set(FROM_RUN) - set(over.from_run) == {"fineSize", "seed"}
    assert not any("[from the run]" in text for text in describe(over).splitlines() if "seed" in text)


def test_a_prediction_takes_from_the_run_what_it_knows(tmp_path):
    (tmp_path / "R").mkdir()
    save_options(tmp_path / "R" / "options.json", parse("--dataroot t --loadSize 320 --fineSize 256 --seed 7"))
    options = parse(f"--dataroot d --name R --checkpoints_dir {tmp_path} --load_size 300", "predict")
    assert (options.dataroot, options.loadSize, options.fineSize, options.seed) == ("d", 300, 256, 7)
    assert sorted(options.from_run) == ["fineSize", "seed", "synthetic_count"]
    assert not hasattr(options, "severity_from")  # it has no labels to grade


@pytest.mark.parametrize("command", ["train", "test", "predict"])
def test_module_two_s_sizes_are_zero_or_possible(command):
    asked = parse("--dataroot d --cell_diameter 64.5 --um_per_px 0.1 --cells no", command)
    assert (asked.cell_diameter, asked.um_per_px, asked.cells) == (64.5, 0.1, "no")
    plain = parse("--dataroot d", command)
    assert (plain.cell_diameter, plain.um_per_px, plain.cells) == (0, 0, "yes")
    assert getattr(plain, "cell_pages", None) == (None if command == "train" else 100)  # a training writes no page
    for wrong in ("--cell_diameter 3.9", "--cell_diameter 2001", "--cell_diameter -5", "--um_per_px 10.1"):
        with pytest.raises(UserError, match=r"must be 0 \(not known\) or a number from"):
            parse(f"--dataroot d {wrong}", command)


def test_a_pattern_that_the_shell_expanded_is_explained():
    with pytest.raises(UserError, match=r"unexpected argument 'b.png'") as error:
        parse("--dataroot a.png b.png --gpu_ids -1", "predict")
    assert "in quotes" in str(error.value)


def test_a_test_refuses_a_run_whose_options_are_broken(tmp_path):
    (tmp_path / "R").mkdir()
    (tmp_path / "R" / "options.json").write_text('{"values": ')
    with pytest.raises(UserError, match=r"options\.json is not an options file"):
        parse(f"--dataroot d --name R --checkpoints_dir {tmp_path}", "test")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"niter": -1}, "bad value of niter"),
        ({"gan_mode": "wgan"}, "bad value of gan_mode"),
        ({"no_augment": "yes"}, "must be true or false"),
        ({"surprise": 1}, "unknown here: surprise"),
    ],
)
def test_a_tampered_file_is_refused(tmp_path, change, words):
    path = tmp_path / "options.json"
    save_options(path, parse("--dataroot d"))
    content = json.loads(path.read_text())
    content["values"] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=words):
        load_options(path)


def test_what_is_no_options_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="no options file"):
        load_options(tmp_path / "absent.json")
    (tmp_path / "x.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="is not an options file"):
        load_options(tmp_path / "x.json")


def test_an_options_file_without_a_bottom_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match="is not an options file"):
        load_options(tmp_path / "x.json")


@pytest.mark.parametrize("other", ["--dataroot d", "--continue_predict", "--overwrite"])
def test_a_page_takes_no_folder(other):
    assert parse("--serve", "predict").serve
    with pytest.raises(UserError, match=f"--serve does not go with {other.split()[0]}"):
        parse(f"--serve {other}", "predict")


def test_the_data_command():
    given = parse_data_command(shlex.split("tile a 'b c' --rows 3"), prog="p", description="")
    assert (given.action, str(given.source), str(given.out), given.columns) == ("tile", "a", "b c", 4)
    with pytest.raises(UserError, match="did you mean --count"):
        parse_data_command(shlex.split("synthesize out --cuont 3"), prog="p", description="")
    with pytest.raises(UserError, match="must be 1 or more"):
        parse_data_command(shlex.split("synthesize out --count 0"), prog="p", description="")
    with pytest.raises(UserError, match="invalid choice"):
        parse_data_command(["paint"], prog="p", description="")


def test_the_sources_of_severity_are_those_that_the_data_knows():
    from data.severity import SOURCES

    option = next(option for option in OPTIONS if option.name == "severity_from")
    assert tuple(option.choices) == SOURCES
