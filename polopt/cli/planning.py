"""`polopt plan`: what a language model asks of a cluster, before there is one. Imports no torch for a bare size."""

from __future__ import annotations

from polopt.cli.arguments import make_parser
from polopt.core.errors import UsageError

AT_LEAST_ONE = ("devices", "tokens", "rows", "length", "rank")
ABOVE_ZERO = ("tflops", "reads", "bandwidth")


def plan_verb(argv: list[str]) -> int:
    from polopt.training.sizes import BYTES, NEVER, Work, advice, read_amount, table

    parser = make_parser("plan", "Memory, traffic and time of training a language model on so many devices.")
    parser.add_argument("model", help="a folder, a run, a hub id, a size of polopt's own (1m), or any size, as 7B")
    parser.add_argument("--devices", type=int, default=1, metavar="N")
    parser.add_argument("--memory", default="80GB", help="of each device; default 80GB")
    parser.add_argument("--tokens", type=int, default=8192, help="of a backward pass (--micro-tokens); default 8192")
    parser.add_argument("--rows", type=int, default=256, help="completions of an optimizer step; default 256")
    parser.add_argument("--length", type=int, default=1024, help="tokens of one, with its prompt; default 1024")
    parser.add_argument("--dtype", default="bfloat16", choices=[*BYTES], help="of weights and moments")
    parser.add_argument("--rank", type=int, default=16, help="of LoRA adapters; default 16")
    parser.add_argument("--reference", action="store_true", help="a reference model is held too")
    parser.add_argument("--no-checkpointing", action="store_true", help="no state is computed again in backward")
    parser.add_argument("--tflops", type=float, default=400.0, help="10^12 operations a second; default 400")
    parser.add_argument("--reads", type=float, default=3000.0, help="GB a second of a device's memory; default 3000")
    parser.add_argument("--bandwidth", type=float, default=50.0, help="GB a second between devices; default 50")
    args = parser.parse_args(argv)
    for name in AT_LEAST_ONE:
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} {getattr(args, name)}: at least 1")
    for name in ABOVE_ZERO:
        if not getattr(args, name) > 0:
            raise UsageError(f"--{name} {getattr(args, name):g}: above 0")
    memory = read_amount(args.memory)
    from polopt.policies.shapes import shape_of

    shape = shape_of(args.model)
    work = Work(
        devices=args.devices,
        dtype=args.dtype,
        rows=args.rows,
        length=args.length,
        tokens=args.tokens,
        rank=args.rank,
        reference=args.reference,
        recompute=not args.no_checkpointing,
        speed=args.tflops * 1e12,
        reads=args.reads * 1e9,
        bandwidth=args.bandwidth * 1e9,
    )
    known = "counted from its configuration" if shape.counted else "of the usual proportions"
    print(
        f"{args.model}: {shape.parameters:,} parameters, {shape.layers} layers of width {shape.width:,}, {known}\n"
        f"{work.rows:,} rows of {work.length:,} tokens a step, {work.dtype}; a device has {work.passes:,} "
        f"backward pass{'es' * (work.passes > 1)} of {work.piece:,} tokens\n"
    )
    rows = table(shape, work, memory)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        print("  ".join(cells).rstrip())
    print(f"\n{advice(shape, work, memory)}\n{NEVER}")
    return 0
