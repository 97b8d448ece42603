"""`python -m pipeline …`"""

import sys

if __name__ == "__main__" and sys.argv[1:2] == ["bench"]:  # before the imports: it runs where torch is all there is
    from pipeline.bench.command import main as bench_main

    sys.exit(bench_main(sys.argv[2:]))

from pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main())
