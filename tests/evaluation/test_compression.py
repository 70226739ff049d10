"""Compressor figures, against the programs whose names they carry."""

import random
import shutil
import subprocess

import pytest

from modeling_foundry.evaluation.measuring.compression import compress

TEXT = "".join(f"def function_{index}(x):\n    return x + {index * index}\n" for index in range(2000))


@pytest.mark.parametrize(("program", "options"), [("gzip", ["-9", "-n"]), ("xz", ["-9e"])])
def test_same_size_as_the_program(program, options):
    if shutil.which(program) is None:
        pytest.skip(f"no {program} on this machine")
    size = len(
        subprocess.run([program, *options, "-c"], input=TEXT.encode(), capture_output=True, check=True).stdout
    )
    result = compress([TEXT])
    ours = result.gzip_bits_per_byte if program == "gzip" else result.xz_bits_per_byte
    assert ours == pytest.approx(8 * size / len(TEXT), rel=0.01)


def test_what_cannot_be_predicted_cannot_be_compressed():
    digits = "".join(random.Random(0).choices("0123456789abcdef", k=50_000))
    result = compress([digits])
    assert 4.0 < result.xz_bits_per_byte < 4.7
    assert 4.0 < result.gzip_bits_per_byte < 4.7


def test_documents_are_put_end_to_end_and_bytes_are_counted():
    assert compress(["é" * 10, "x"]).num_bytes == 21
    halves = compress([TEXT[:9999], TEXT[9999:]])
    assert halves == compress([TEXT])


def test_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing to compress"):
        compress(["", ""])
