EXTENSION: bool
TORCH_VERSION: str
COMPILER: str
ISAS: tuple[str, ...]
