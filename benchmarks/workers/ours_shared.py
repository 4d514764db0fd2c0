"""What workers share that measure a learner without the loop of training around it."""

from contextlib import ExitStack

from polopt.bases.method import Method
from polopt.training.plan import Plan, runtime

RUN = ExitStack()


def begun(planned: Plan) -> Method:
    """The method, built; from here on, or until another is begun, the process is set up as for a run of it."""
    RUN.close()
    RUN.enter_context(runtime(planned.options))
    return planned.build()
