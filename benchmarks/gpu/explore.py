import sys, time, traceback, copy
T0 = time.perf_counter()
import torch
import torch.nn.functional as F
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent)); sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from world import drift
from packshot.engine.fast import kernels as K, reference as R
def milliseconds(run, repeats=20, warm=3):
    for _ in range(warm): run()
    times = []
    for _ in range(repeats):
        a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2)); a.record(); run(); b.record(); b.synchronize(); times.append(a.elapsed_time(b))
    times.sort(); return times[len(times) // 2], times[0], times[-1]
print("import", time.perf_counter() - T0, torch.cuda.get_device_name(), torch.__version__, flush=True)
torch.backends.cudnn.benchmark = True
torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
dev, bf = "cuda", torch.bfloat16
def part(fn):
    t = time.perf_counter()
    try: fn()
    except Exception: traceback.print_exc(limit=6)
    torch.cuda.synchronize(); print(f"--- {fn.__name__} {time.perf_counter()-t:.1f}s", flush=True)
def timed(f, n=10):
    f(); st = torch.cuda.Stream(); st.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(st): f()
    torch.cuda.current_stream().wait_stream(st)
    g = torch.cuda.CUDAGraph()
    with torch.cuda.graph(g):
        for _ in range(n): f()
    return milliseconds(lambda: g.replay(), 10)[0] * 1e3 / n
@torch.inference_mode()
def check():
    torch.manual_seed(0)
    for B, P, C, CS in ((2, 16384, 320, 0), (2, 1024, 1280, 640), (2, 4096, 640, 320), (16, 4096, 640, 0), (1, 1048576, 128, 0), (1, 262144, 256, 0)):
        x = torch.randn(B, P, C, device=dev, dtype=bf) + 1; add = torch.randn_like(x); bias = torch.randn(C, device=dev)
        skip = torch.randn(B, P, CS, device=dev, dtype=bf) if CS else None
        C2 = C + CS; n = R.GroupNorm(torch.randn(C2, device=dev, dtype=bf), torch.randn(C2, device=dev, dtype=bf), 32, 1e-5)
        (y, a), (z, r) = K.group_norm(x, n, add=add, bias=bias, skip=skip), R.group_norm(x, n, add=add, bias=bias, skip=skip)
        mb = B * P * C * 2 / 1e6
        print(f"{B,P,C,CS} {mb:.0f}MB join", drift(y, z), "gn", drift(a.scale, r.scale), drift(a.offset, r.offset), "aff", drift(K.affine(y, a, silu=True), R.affine(y, r, silu=True)))
        t0, t1 = timed(lambda: K.group_norm(x, R.GroupNorm(n.weight[:C], n.bias[:C], 32, 1e-5))), timed(lambda: K.group_norm(x, n, add=add, bias=bias, skip=skip))
        t2, t3 = timed(lambda: K.affine(y, a, silu=True)), timed(lambda: K.join(x, add, bias, skip))
        print(f"    sums {t0:.1f} us ({mb/t0:.2f} TB/s), join+sums {t1:.1f}, affine {t2:.1f}, join {t3:.1f}", flush=True)
        for strip, sp in ((64, 128), (128, 128), (32, 512), (128, 256), (64, 512)):
            K.STRIP, K.SPLITS = strip, sp; print(f"    STRIP {strip} SPLITS {sp}: {timed(lambda: K.group_norm(x, R.GroupNorm(n.weight[:C], n.bias[:C], 32, 1e-5))):.1f}, join+sums {timed(lambda: K.group_norm(x, n, add=add, bias=bias, skip=skip)):.1f}")
        K.STRIP, K.SPLITS = 64, 256
    for B, N, C, H in ((2, 1024, 1280, 20), (2, 4096, 640, 10), (16, 1024, 1280, 20)):
        q = torch.randn(B, N, C, device=dev, dtype=bf); kv = torch.randn(B, 77, 3 * C, device=dev, dtype=bf); k, v = kv[..., :C], kv[..., C : 2 * C]
        print("text", drift(K.attend_text(q, k, v, H), R.attend_text(q.float(), k.float(), v.float(), H)), {t: round(timed(lambda: K.attend_text(q, k, v, H, tiles=t)), 1) for t in ((128, 1, 4), (128, 1, 8), (128, 2, 8), (128, 4, 8), (64, 1, 4), (64, 2, 4), (256, 1, 8))})
    ph = torch.randn(1, 129 * 129, 4 * 512, device=dev, dtype=bf); bi = torch.randn(512, device=dev, dtype=bf)
    print("interleave", drift(K.interleave(ph, (128, 128), bi), R.interleave(ph, (128, 128), bi)), timed(lambda: K.interleave(ph, (128, 128), bi)))
@torch.inference_mode()
def gegl():
    for M, C in ((2048, 1280), (8192, 640), (16384, 1280)):
        x = torch.randn(M, C, device=dev, dtype=bf); W = torch.randn(8 * C, C, device=dev, dtype=bf) * C**-.5; b = torch.randn(8 * C, device=dev, dtype=bf)
        fl = 2 * M * C * 8 * C; want = R.geglu(x, W, b)
        t = timed(lambda: F.linear(x, W, b)); print(f"M{M} C{C} cublas linear+bias {t:.1f}us {fl/t/1e6:.0f} TF/s")
        q8, s8 = torch.tensor(14.0, device=dev), torch.tensor(1 / 14.0 / 448, device=dev)
        x8 = R.to_fp8(x, q8); W8 = R.to_fp8(W, torch.tensor(448.0, device=dev)); one = torch.tensor(1.0, device=dev)
        t = timed(lambda: torch._scaled_mm(x8, W8.t(), one, one, out_dtype=bf, use_fast_accum=True)); print(f"   cublas fp8 {t:.1f}us {fl/t/1e6:.0f}")
        for name, xx, WW, sc, qq in (("bf16", x, W, None, None), ("fp8", x8, W8, s8, q8)):
            for tiles in ((128,256,8,4,8),(128,256,8,3,8),(128,256,8,3,16),(128,128,8,3,8),(128,128,4,2,8)):
                try:
                    f = lambda: K.geglu(xx, WW, b, scale=sc, quant=qq, tiles=tiles)
                    e = drift(f().float() / (1 if qq is None else 14), want); t = timed(f); print(f"   {name} {tiles}: {t:.1f}us {fl/t/1e6:.0f} err {e:.2e}", flush=True)
                except Exception as ex: print(f"   {name} {tiles}: {type(ex).__name__} {str(ex)[:100]}")
for f in (check, gegl): part(f)
