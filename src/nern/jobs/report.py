"""The job behind `nern report`: what a run folder or an artifact file holds, made into a page."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import track
from torch import nn

from nern.api import Fitted
from nern.artifact import LIMIT, load
from nern.config import Config, TaskConfig
from nern.console import PLAIN, CleanConsole
from nern.errors import NernError, plain_errors
from nern.files import check_free, check_writable, write_json
from nern.jobs.report_content import IMAGES, content_of_file, content_of_fit, content_of_run
from nern.jobs.session import check_kind
from nern.processes import check_alone
from nern.shipped import NERN, shipped_file
from nern.terminal import shows_bars
from nern.training.run_folder import RunFolder

PAGE = "report.html"


@plain_errors()
def report(
    source: str | Path | Fitted,
    out: str | Path | None = None,
    images: int | None = IMAGES,
    console: Console | None = None,
    json_path: str | Path | None = None,
    original_model_path: str | Path | None = None,
    task: TaskConfig | None = None,
    network: int | nn.Module | None = None,
    limit: int = LIMIT,
) -> Path:
    """Write a page about a run or an artifact: accuracies, sizes, errors of layers and kernels, smoothness of the order,
    which kernels matter, what changes for each class. It needs no other file; its figures lie beside it, too, in
    NAME_figures.

    Args:
        source: the run folder of `nern train` or `nern quickstart`; a run that was stopped is shown as far as it went. Or
            the file of `nern pack`, or 'pretrained:NAME.nern', one that ships with nern: what compares with the original, or
            looks at images, needs what follows. Or what `nern.fit` gave.
        out: the page, HTML, in place of a file that is there; None: report.html in the run folder, NAME_report.html beside a
            file NAME.nern, or here, if that ships with nern, in place of an earlier report only; of a fit, here.
        images: test images on which kernels are dropped and classes compared, drawn by the run's seed; None: all that the
            run uses, or the task has; 0: none, these parts are left out. Of a fit the first so many of its `test`.
        console: for progress; None: standard output.
        json_path: also write the numbers behind the figures here, in place of a file that is there.
        original_model_path: of a file: the original's weights, as the config key of the same name has them.
        task: of a file: on whose test images both networks, or the reconstructed one alone, are tested; the architecture is
            the file's.
        network: of a file of several networks: which of them, counted from 0, the two are of; or a network of yours to put
            the weights in, where the file does not tell how to build it.
        limit: of a file: most numbers to read (see `nern.load`).

    Returns:
        The page.

    Raises:
        NernError: no run or artifact there; a run with nothing saved in it yet, or with what is for files; files that do not
            fit, or are damaged; an original with other weights to represent; a task without its images; or the page cannot
            be written, or is there without having been named.
    """
    check_alone("nern report")
    console = console or CleanConsole()
    if images is not None and images < 0:
        raise NernError(f"--images (={images}) must be 0 (none) or more; null means all test images")
    page, folder = Path(PAGE), None
    if not isinstance(source, Fitted):
        shipped = shipped_file(str(source), NERN, "pretrained NeRN")
        path = shipped or Path(source).expanduser()
        if not path.exists():
            raise NernError(f"{source} is neither a run folder nor a .nern file: there is nothing of that name")
        if path.is_file():
            page = (Path(path.name) if shipped else path).with_name(f"{path.stem}_{PAGE}")
        else:
            folder = RunFolder.open(path)
            of_files = {"original_model_path": original_model_path, "task": task, "network": network}
            if given := [f"--{name}" for name, value in of_files.items() if value is not None]:
                raise NernError(
                    f"{', '.join(given)}: for .nern files only; run {source} knows its original and its task"
                )
            check_kind(folder, Config)
            page = folder.root / PAGE
    own_name, page = out is None, page if out is None else Path(out).expanduser()
    from nern.analysis.page import MARK, figures_folder, write_page  # matplotlib takes a second to import

    read = [] if isinstance(source, Fitted) else [path]
    check_writable(page, "--out", *read)
    check_writable(json_path, "--json", page, *read)
    check_writable(figures_folder(page) / "figure.png", "--out")
    if own_name and not (page.is_file() and MARK in page.read_text(encoding="utf-8", errors="replace")[:1000]):
        check_free(page, "--out")
    if isinstance(source, Fitted):
        content = content_of_fit(source, images)
    elif folder is not None:
        content = content_of_run(folder, images)
    else:
        artifact = load(path, limit)
        content = content_of_file(artifact, path.name, images, original_model_path, task, network, console)
    watched = partial(track, description="drawing", console=console, transient=True, disable=not shows_bars(console))
    numbers = write_page(page, content, watched)
    if json_path is not None:
        write_json(json_path, numbers)
    console.print(f"page: {page}\nfigures: {figures_folder(page)}", **PLAIN)
    return page
