"""Every row of the table; the first is the unit of cost."""

from benchmarks.row import Row
from benchmarks.rows import backpack, curvlinops, laplace, loop, nngeometry, ours, plain, torch_func

ROWS: tuple[Row, ...] = (
    plain.UNIT,
    plain.FLOOR,
    *ours.ROWS,
    *torch_func.ROWS,
    *loop.ROWS,
    *curvlinops.ROWS,
    *backpack.ROWS,
    *nngeometry.ROWS,
    *laplace.ROWS,
)
