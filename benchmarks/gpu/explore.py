import sys, time, traceback, copy
T0 = time.perf_counter()
import torch
import torch.nn.functional as F
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent)); sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from world import network, drift, milliseconds
from packshot.engine.fast import kernels as K, reference as R
from packshot.engine.fast.attention import Attention
from packshot.engine.fast.unet import FastUNet
from packshot.engine.fast.vae import FastDecoder
from packshot.engine.fast.graphs import Shape, StepGraph, Captured, table_of, WINDOW
from packshot.engine.fast.calibration import calibrate, to_fp8
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
        for sp in (64, 128, 512):
            K.SPLITS = sp; print(f"    SPLITS {sp}: {timed(lambda: K.group_norm(x, R.GroupNorm(n.weight[:C], n.bias[:C], 32, 1e-5))):.1f}, join+sums {timed(lambda: K.group_norm(x, n, add=add, bias=bias, skip=skip)):.1f}")
        K.SPLITS = 256
    for B, N, C, H in ((2, 1024, 1280, 20), (2, 4096, 640, 10), (16, 1024, 1280, 20)):
        q = torch.randn(B, N, C, device=dev, dtype=bf); kv = torch.randn(B, 77, 3 * C, device=dev, dtype=bf); k, v = kv[..., :C], kv[..., C : 2 * C]
        print("text", drift(K.attend_text(q, k, v, H), R.attend_text(q.float(), k.float(), v.float(), H)), f"{timed(lambda: K.attend_text(q, k, v, H)):.1f} us")
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
            for tiles in ((128,256,8,4,8),(128,256,8,3,8),(128,256,8,3,16),(128,128,4,3,8),(128,128,8,3,8),(64,256,4,2,8),(64,256,4,3,8),(128,128,4,2,8),(256,128,8,3,8),(128,128,8,2,16)):
                try:
                    f = lambda: K.geglu(xx, WW, b, scale=sc, quant=qq, tiles=tiles)
                    e = drift(f().float() / (1 if qq is None else 14), want); t = timed(f); print(f"   {name} {tiles}: {t:.1f}us {fl/t/1e6:.0f} err {e:.2e}", flush=True)
                except Exception as ex: print(f"   {name} {tiles}: {type(ex).__name__} {str(ex)[:100]}")
state = {}
@torch.inference_mode()
def build():
    state["plain"] = u = network("unet"); state["attend"] = Attention()
    state["fast"] = FastUNet(u, K, state["attend"])
    state["text"] = torch.randn(2, 77, 2048, device=dev, dtype=bf); state["pooled"] = torch.randn(2, 1280, device=dev, dtype=bf)
def step_graph(shape, fast, pool=True):
    g = StepGraph(fast, K.advance, shape, torch.device(dev), torch.cuda.graph_pool_handle() if pool else None)
    return g
def fill(g, u, fast, size):
    rows = g.shape.rows; n = rows // 2
    text = state["text"].repeat_interleave(n, 0); pooled = state["pooled"].repeat_interleave(n, 0)
    ids = torch.tensor([[size, size, 0, 0, size, size]] * rows, device=dev)
    emb = u.embed(torch.linspace(999, 1, 30, device=dev), pooled, ids)
    torch.mm(text.flatten(0, 1), fast.kv_weight.t(), out=g.kv.flatten(0, 1))
    g.load(torch.tensor([[.07, 1, -14.0, .8, .2, 0, 0, .08]] * 30, device=dev), fast.shifts(emb))
    g.guidance.fill_(5.0)
    g.start(torch.randn(g.shape.pictures, 4, g.shape.height, g.shape.width, device=dev) * 14, torch.tensor(.07, device=dev))
    return emb, text
def classes(run, n=3):
    from torch.profiler import profile, ProfilerActivity
    import collections
    with profile(activities=[ProfilerActivity.CUDA]) as p:
        for _ in range(n): run()
        torch.cuda.synchronize()
    tot, cnt = collections.Counter(), collections.Counter()
    for e in p.events():
        if e.device_type.name == "CUDA": tot[e.name[:90]] += e.device_time / n; cnt[e.name[:90]] += 1 / n
    print(f"kernels {sum(cnt.values()):.0f} sum {sum(tot.values())/1e3:.2f} ms")
    for k, v in tot.most_common(18): print(f"  {v/1e3:7.3f} ms {cnt[k]:5.0f} x {v/max(cnt[k],1e-9):6.1f}us {k}")
def drift_of(fast, label):
    u = state["plain"]; B, h, w = 2, 64, 64
    torch.manual_seed(3)
    x = torch.randn(B, 4, h, w, device=dev); ids = torch.tensor([[512, 512, 0, 0, 512, 512]] * 2, device=dev)
    emb = u.embed(torch.tensor([500.0], device=dev), state["pooled"], ids)
    kv = torch.mm(state["text"].flatten(0, 1), fast.kv_weight.t()).view(2, 77, -1)
    if "want" not in state:
        u32 = copy.deepcopy(u).float(); tf = torch.backends.cuda.matmul.allow_tf32; torch.backends.cudnn.allow_tf32 = False
        e32 = u32.embed(torch.tensor([500.0], device=dev), state["pooled"].float(), ids)
        state["want"] = u32(x.to(bf).float(), e32[0], u32.cross_kv(state["text"].float())); del u32
        print("eager bf16 drift", drift(u(x.to(bf).to(memory_format=torch.channels_last), emb[0], u.cross_kv(state["text"])), state["want"]))
        torch.cuda.empty_cache()
    got = fast(x.to(bf).permute(0, 2, 3, 1).flatten(1, 2).contiguous(), (h, w), fast.shifts(emb[0]), fast.split_kv(kv))
    print(label, "drift", drift(got.view(B, h, w, 4).permute(0, 3, 1, 2), state["want"]))
@torch.inference_mode()
def bf16_step():
    drift_of(state["fast"], "fast bf16")
    t = time.perf_counter(); g = step_graph(Shape(1, 128, 128), state["fast"]); fill(g, state["plain"], state["fast"], 1024); torch.cuda.synchronize(); print("capture", time.perf_counter() - t)
    print("STEP bf16 1024 b2 ms", milliseconds(g.step, 30)); import subprocess; [g.step() for _ in range(60)]; print(subprocess.run("nvidia-smi --query-gpu=clocks.sm,power.draw,temperature.gpu --format=csv,noheader", shell=True, capture_output=True, text=True).stdout); torch.cuda.synchronize(); print(state["attend"].chosen)
    classes(g.step); state["g"] = g
@torch.inference_mode()
def step512():
    g = step_graph(Shape(1, 64, 64), state["fast"]); fill(g, state["plain"], state["fast"], 512); print("STEP bf16 512 ms", milliseconds(g.step, 30))
@torch.inference_mode()
def batch8():
    g = step_graph(Shape(8, 128, 128), state["fast"]); fill(g, state["plain"], state["fast"], 1024); print("STEP bf16 1024 b16 ms", milliseconds(g.step, 8)); classes(g.step, 1); print("mem", torch.cuda.max_memory_allocated() / 1e9)
@torch.inference_mode()
def fp8():
    fast = state["fast"]; g = step_graph(Shape(1, 128, 128), fast, pool=False); fill(g, state["plain"], fast, 1024)
    top = calibrate(fast, g.step, 3); print("gated amax", min(top), max(top))
    to_fp8(fast, top); drift_of(fast, "fast fp8")
    g = step_graph(Shape(1, 128, 128), fast); fill(g, state["plain"], fast, 1024); print("STEP fp8 1024 b2 ms", milliseconds(g.step, 30)); classes(g.step)
    g = step_graph(Shape(8, 128, 128), fast); fill(g, state["plain"], fast, 1024); print("STEP fp8 1024 b16 ms", milliseconds(g.step, 8)); classes(g.step, 1)
@torch.inference_mode()
def vae():
    v = network("vae"); f = FastDecoder(v, K); lat = torch.randn(1, 4, 128, 128, device=dev)
    out = f(lat); v32 = copy.deepcopy(v).float(); torch.backends.cudnn.allow_tf32 = False; torch.backends.cudnn.benchmark = False
    want = ((v32.decode(lat).clamp(-1, 1) / 2 + .5) * 255); eager = ((v.decode(lat.to(bf).to(memory_format=torch.channels_last)).float().clamp(-1, 1) / 2 + .5) * 255)
    torch.backends.cudnn.benchmark = True
    print("vae drift levels: fast", (out.permute(0, 3, 1, 2).float() - want).abs().mean().item(), "eager", (eager - want).abs().mean().item())
    buf = {}
    def run(): buf["o"] = f(lat)
    c = Captured(run, torch.device(dev), torch.cuda.graph_pool_handle()); print("VAE ms", milliseconds(c, 20)); classes(c)
@torch.inference_mode()
def text():
    a, b = network("text_encoder"), network("text_encoder_2"); ids = torch.randint(0, 49000, (2, 77), device=dev); ids[:, -1] = 49407
    buf = {}
    def run(): buf["o"] = (a.hidden(ids), b(ids))
    c = Captured(run, torch.device(dev), torch.cuda.graph_pool_handle()); print("TEXT ms", milliseconds(c, 20)); classes(c)
for f in (check, gegl, build, bf16_step, step512, batch8, vae, text, fp8): part(f)
