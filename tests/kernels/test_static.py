"""The schedule reader on a listing small enough to count by hand."""

import sys

import pytest

from kernels.static import command as static
from kernels.static import passes, schedule

LISTING = """\
$region0: #{toy.1}
  #allocation3 [shape = 'f32[8,128]', space=vmem, size = 0x1000, offset = 0x800, scoped]
  // region range: [0, 40)
  $region1: #{toy.1} parent=0 // loop_body
    // region range: [5, 30)
    $region2 (PrimaryCoreRegion): #{toy.1} parent=1 (Other) // pred_check_branch
      // region range: [6, 12)
      %1 = sbr.rel (%p1) target bundleno = 20 (0x14), region = 4
    $region3: #{toy.1} parent=1 // pred_region
      // region range: [6, 20)
    $region4: #{toy.1} parent=1 // pred_fallthru
      // region range: [20, 20)
  $region5: #{toy.1} parent=0 // loop_header_branch
    // region range: [29, 33)
    %2 = sbr.rel (!%p2) target bundleno = 5 (0x5), region = 1
"""


@pytest.fixture
def dump(tmp_path):
    head = (
        "== CAPACITY:\n"
        + ", ".join(schedule.UNITS)
        + "\n"
        + " ".join(["2"] * 10)
        + "\n== UTILIZATION:\n"
    )
    rows = "\n".join(
        " ".join(["1"] + ["0"] * 9) if 12 <= n < 20 else " ".join(["0"] * 9 + ["1"])
        for n in range(40)
    )
    (tmp_path / "7-toy.1-60-pre-delay_hlo-static-per-bundle-utilization.txt").write_text(
        head + rows + "\n"
    )
    (tmp_path / "7-toy.1-59-post-bundle-packing-post-ra.txt").write_text(LISTING)
    return str(tmp_path)


def test_regions_end_at_their_branches(dump):
    toy = schedule.read(dump, "toy")
    (loop,) = toy.root.children
    (body,) = loop.children
    assert (loop.start, loop.end, body.start, body.end) == (5, 33, 12, 20)
    assert [len(toy.exclusive_use(region)) for region in toy.root.walk()] == [12, 20, 8]
    assert toy.exclusive_use(body)[:, 0].sum() == 8 and toy.exclusive_use(loop)[:, 0].sum() == 0
    assert toy.vmem_bytes == 0x1800


def test_a_pass_counts_each_region_as_often_as_it_runs(dump):
    toy = schedule.read(dump, "toy")
    (loop,) = toy.root.children
    p = passes.total("toy", toy, [(loop, 3), (loop.children[0], 2)], {"block": loop.children[0]})
    assert p.cycles == 3 * 20 + 2 * 8
    assert p.blocks == {"block": 8}
    assert p.units["MXU"] == pytest.approx(2 * 8 / (p.cycles * 2))


def test_a_loop_counts_its_trips_and_all_inside_it(dump):
    toy = schedule.read(dump, "toy")
    (loop,) = toy.root.children
    times = [times for _, times in passes.inside(toy.root, 2, trips=5)]
    assert times == [2, 10, 10]
    assert passes.matrix_slots(toy, loop) == 8
    assert passes.grid_step(toy) == (loop, loop.children[0])


def test_unknown_format_is_refused(dump, tmp_path):
    listing = tmp_path / "7-toy.1-59-post-bundle-packing-post-ra.txt"
    listing.write_text(LISTING.replace("[0, 40)", "[0, 38)"))
    with pytest.raises(ValueError, match="another format"):
        schedule.read(dump, "toy")
    with pytest.raises(ValueError, match="no schedule of a kernel named absent"):
        schedule.read(dump, "absent")


def test_names_the_package_to_install(monkeypatch, capsys):
    monkeypatch.setattr(static.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["static", "flash_attention"])
    assert static.main() == 2
    assert "pip install -e '.[tpu]' in the project's folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [("--chip=v5p,v9", "unknown chip v9"), ("--seq=1000", "multiple of 1024")],
)
def test_refuses_wrong_options(monkeypatch, capsys, option, message):
    monkeypatch.setattr(sys, "argv", ["static", "flash_attention", option])
    with pytest.raises(SystemExit, match="2"):
        static.main()
    assert message in capsys.readouterr().err
