"""Records a training script that is not edited: ``python -m tracelab.attach --config FILE ...``.

This file can only be run. Imported, it would take the place of the function `tracelab.attach`.
"""

if __name__ != "__main__":
    raise ImportError(
        "the module 'tracelab.attach' can only be run, as in 'python -m tracelab.attach --config "
        "trace.yaml train.py'; the function of that name is there after 'import tracelab'"
    )

from tracelab.launch import main

main()
