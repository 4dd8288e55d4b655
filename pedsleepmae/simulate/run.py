"""Script 0's logic: the plan of a cohort, and writing it as recordings or as batch files."""

from tqdm import tqdm

from pedsleepmae.errors import SettingsError, require_folder
from pedsleepmae.simulate import batches, health
from pedsleepmae.simulate.cohort import SimulateSettings, Visit, plan_cohort


def open_inputs(settings: SimulateSettings) -> list[Visit]:
    """The visits to simulate; SettingsError where recordings of another cohort are there."""
    if settings.event_dir is not None:
        require_folder(settings.event_dir, "event_dir", "give a folder of NCH .tsv files")
    visits = plan_cohort(settings)
    if settings.batches_dir is None:
        folder, ours = settings.output_dir / "Sleep_Data", {f"{visit.key}.edf" for visit in visits}
        others = sorted(path.name for path in folder.glob("*.edf") if path.name not in ours)
        if others:
            raise SettingsError(
                f"output_dir: {folder} holds {len(others)} recordings of another cohort (first "
                f"{others[0]}); give an empty folder or delete it"
            )
    return visits


def simulate(visits: list[Visit], settings: SimulateSettings) -> str:
    """Simulate and write all visits and the health tables; the sentence that says what is there."""
    health.write_health_data(settings.output_dir / "Health_Data", visits)
    if settings.batches_dir is not None:
        done, unit, place = (
            batches.write_batches(visits, settings),
            "examples",
            settings.batches_dir,
        )
    else:
        from pedsleepmae.simulate import nch_files  # here: batch files need no edfio

        done = nch_files.write_recordings(visits, settings)
        unit, place = "epochs", settings.output_dir
    n_epochs = sum(tqdm(done, total=len(visits), desc="Simulating", unit="recording"))
    n_patients = len({visit.patient_id for visit in visits})
    return (
        f"Simulated: {len(visits)} recordings of {n_patients} children, {n_epochs} scored {unit}, "
        f"in {place}"
    )
