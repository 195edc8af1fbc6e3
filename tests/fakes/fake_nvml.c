/* A scripted stand-in for libnvidia-ml.so.1, for tests only.
 *
 * FAKE_NVML_SCRIPT     file; times are in seconds, `idx` is a GPU:
 *     gpu <idx> <name, _ for space> <uuid> [noenergy] [nopower] [nofields] [mig]
 *     seg <idx> <t> <power_mw>                 power from t on
 *     reset <idx> <t>                          the energy counter starts at 0 again
 *     lost <idx> <t_on> <t_off>                every call says that the GPU is lost
 *     absent <idx> <t>                         an nvmlInit from t on does not find the GPU
 *     compute <idx> <pid> <bytes> <t_on> <t_off> <sm_percent>
 *     graphics <idx> <pid> <bytes> <t_on> <t_off> <sm_percent>
 *     reload <t>                               NVML forgets its users once
 * FAKE_NVML_CLOCK      file of one int64, "now" in microseconds; else
 * FAKE_NVML_ORIGIN_NS  the CLOCK_MONOTONIC reading at which script time 0 is
 * FAKE_NVML_PERIOD_MS  refresh period of counter and power (default 100)
 *
 * Compiled with -DNO_COMPUTE_LIST or -DNO_GRAPHICS_LIST it lacks that process list.
 * Energy is integrated in integers: milliwatts times microseconds are nanojoules.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

typedef int64_t us_t;
typedef enum {
  OK, UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED,
  NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15,
} nvmlReturn_t;

typedef struct {
  unsigned field, scope;
  long long timestamp, latency_us;
  unsigned value_type;
  nvmlReturn_t status;
  union { unsigned ui; unsigned long long ull; } value;
} nvmlFieldValue_t;

typedef struct {
  unsigned pid;
  unsigned long long stamp;
  unsigned sm, mem, enc, dec;
} nvmlProcessUtilizationSample_t;

typedef struct {
  unsigned pid;
  unsigned long long bytes;
  unsigned gpu_instance, compute_instance;
} nvmlProcessInfo_t;

/* As in NVIDIA's own nvml.h 13.5. */
_Static_assert(sizeof(nvmlFieldValue_t) == 40, "nvmlFieldValue_t");
_Static_assert(sizeof(nvmlProcessUtilizationSample_t) == 32, "nvmlProcessUtilizationSample_t");
_Static_assert(sizeof(nvmlProcessInfo_t) == 24, "nvmlProcessInfo_t");

enum { MAX_GPUS = 16, MAX_PROCESSES = 64, MAX_SEGMENTS = 512, MAX_RESETS = 16, MAX_RELOADS = 8 };
enum { FIELD_POWER_INSTANT = 186, TYPE_UNSIGNED = 1 };
#define US_PER_S 1000000
#define NEVER INT64_MAX
#define SAMPLE_PERIOD_US 200000
#define SAMPLES_KEPT 50
#define STAMP_EPOCH_US 1700000000000000ull

typedef struct {
  int graphics;
  unsigned pid, sm;
  unsigned long long bytes;
  us_t on, off;
} Process;

typedef struct {
  int used, noenergy, nopower, nofields, mig;
  char name[96], uuid[80];
  int segments, resets, processes;
  us_t segment_at[MAX_SEGMENTS];
  int64_t segment_mw[MAX_SEGMENTS];
  us_t reset_at[MAX_RESETS];
  us_t lost_on, lost_off, absent;
  Process process[MAX_PROCESSES];
} Gpu;

/* A handle is good for one generation: until NVML is initialized anew. */
typedef struct {
  int gpu, generation;
} Handle, *nvmlDevice_t;

static Gpu gpus[MAX_GPUS];
static Handle handles[MAX_RELOADS + 1][MAX_GPUS];
static us_t reload_at[MAX_RELOADS];
static int reloads, reloads_done, generation, found, users, loaded;
static us_t refresh_us = 100000;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void die(const char *why) {
  fprintf(stderr, "fake_nvml: not understood: %s\n", why);
  abort();
}

/* The environment is read once: what the fake costs is charged to the process that it serves. */
static volatile us_t *clock_page;
static long long origin_ns;

static void find_clock(void) {
  const char *path = getenv("FAKE_NVML_CLOCK"), *origin = getenv("FAKE_NVML_ORIGIN_NS");
  origin_ns = origin ? atoll(origin) : 0;
  if (path && !clock_page) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    void *page = mmap(NULL, sizeof *clock_page, PROT_READ, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED) die("FAKE_NVML_CLOCK");
    close(fd);
    clock_page = page;
  }
}

static us_t now_us(void) {
  if (clock_page) return *clock_page;
  struct timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return (ts.tv_sec * 1000000000ll + ts.tv_nsec - origin_ns) / 1000;
}

static us_t us(double seconds) { return (us_t)(seconds * US_PER_S + 0.5); }

static void load_gpu(Gpu *gpu, const char *line, const char *name, const char *uuid) {
  gpu->used = 1;
  strcpy(gpu->uuid, uuid);
  strcpy(gpu->name, name);
  for (char *c = gpu->name; (c = strchr(c, '_')) != NULL;) *c = ' ';
  gpu->noenergy = strstr(line, " noenergy") != NULL;
  gpu->nopower = strstr(line, " nopower") != NULL;
  gpu->nofields = strstr(line, " nofields") != NULL;
  gpu->mig = strstr(line, " mig") != NULL;
}

static int load_process(const char *line, Gpu *gpu, int graphics) {
  Process process = {.graphics = graphics};
  double on, off;
  int read = sscanf(line, "%*s %*d %u %llu %lf %lf %u", &process.pid, &process.bytes, &on, &off,
                    &process.sm);
  if (read != 5 || gpu->processes == MAX_PROCESSES) return 0;
  process.on = us(on);
  process.off = us(off);
  gpu->process[gpu->processes++] = process;
  return 1;
}

static int load_line(const char *line) {
  char word[16], name[96], uuid[80];
  int index = 0;
  double a = 0, b = 0;
  if (sscanf(line, "%15s", word) != 1 || word[0] == '#') return 1;
  if (!strcmp(word, "reload") && sscanf(line, "%*s %lf", &a) == 1 && reloads < MAX_RELOADS) {
    reload_at[reloads++] = us(a);
    return 1;
  }
  if (sscanf(line, "%*s %d", &index) != 1 || index < 0 || index >= MAX_GPUS) return 0;
  Gpu *gpu = &gpus[index];
  if (!strcmp(word, "gpu") && sscanf(line, "%*s %*d %95s %79s", name, uuid) == 2) {
    load_gpu(gpu, line, name, uuid);
  } else if (!strcmp(word, "seg") && sscanf(line, "%*s %*d %lf %lf", &a, &b) == 2 &&
             gpu->segments < MAX_SEGMENTS) {
    gpu->segment_at[gpu->segments] = us(a);
    gpu->segment_mw[gpu->segments++] = (int64_t)b;
  } else if (!strcmp(word, "reset") && sscanf(line, "%*s %*d %lf", &a) == 1 &&
             gpu->resets < MAX_RESETS) {
    gpu->reset_at[gpu->resets++] = us(a);
  } else if (!strcmp(word, "lost") && sscanf(line, "%*s %*d %lf %lf", &a, &b) == 2) {
    gpu->lost_on = us(a);
    gpu->lost_off = us(b);
  } else if (!strcmp(word, "absent") && sscanf(line, "%*s %*d %lf", &a) == 1) {
    gpu->absent = us(a);
  } else if (!strcmp(word, "compute") || !strcmp(word, "graphics")) {
    return load_process(line, gpu, word[0] == 'g');
  } else {
    return 0;
  }
  return 1;
}

static void load(void) {
  const char *script = getenv("FAKE_NVML_SCRIPT"), *period = getenv("FAKE_NVML_PERIOD_MS");
  find_clock();
  char line[512];
  if (period) refresh_us = atoll(period) * 1000;
  for (int i = 0; i < MAX_GPUS; i++) gpus[i].lost_on = gpus[i].lost_off = gpus[i].absent = NEVER;
  FILE *file = script ? fopen(script, "r") : NULL;
  if (!file) die("FAKE_NVML_SCRIPT");
  while (fgets(line, sizeof line, file)) {
    if (!load_line(line)) die(line);
  }
  fclose(file);
  loaded = 1;
}

static void enumerate(void) {
  us_t t = now_us();
  found = 0;
  for (int i = 0; i < MAX_GPUS; i++) {
    if (gpus[i].used && t < gpus[i].absent) handles[generation][found++] = (Handle){i, generation};
  }
}

/* Whether NVML is initialized; a scripted reload ends that. */
static nvmlReturn_t ready(void) {
  pthread_mutex_lock(&lock);
  if (users && reloads_done < reloads && now_us() >= reload_at[reloads_done]) {
    reloads_done++;
    generation++;
    users = 0;
  }
  nvmlReturn_t status = users ? OK : UNINITIALIZED;
  pthread_mutex_unlock(&lock);
  return status;
}

static nvmlReturn_t check(nvmlDevice_t device, const void *out) {
  nvmlReturn_t status = ready();
  if (status != OK) return status;
  if (!device || !out || device->generation != generation) return INVALID_ARGUMENT;
  const Gpu *gpu = &gpus[device->gpu];
  us_t t = now_us();
  return gpu->lost_on <= t && t < gpu->lost_off ? GPU_IS_LOST : OK;
}

static us_t refreshed(us_t t) { return refresh_us > 0 ? t - t % refresh_us : t; }

static int64_t power_mw(const Gpu *gpu, us_t t) {
  int64_t power = 0;
  for (int i = 0; i < gpu->segments && gpu->segment_at[i] <= t; i++) power = gpu->segment_mw[i];
  return power;
}

static int64_t energy_nj(const Gpu *gpu, us_t from, us_t to) {
  int64_t energy = 0;
  for (int i = 0; i < gpu->segments; i++) {
    us_t end = i + 1 < gpu->segments ? gpu->segment_at[i + 1] : NEVER;
    us_t start = gpu->segment_at[i] > from ? gpu->segment_at[i] : from;
    if (end > to) end = to;
    if (end > start) energy += gpu->segment_mw[i] * (end - start);
  }
  return energy;
}

nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
  (void)flags;
  pthread_mutex_lock(&lock);
  if (!loaded) load();
  if (!users++) enumerate();
  pthread_mutex_unlock(&lock);
  return OK;
}

nvmlReturn_t nvmlShutdown(void) {
  if (ready() != OK) return UNINITIALIZED;
  pthread_mutex_lock(&lock);
  users--;
  pthread_mutex_unlock(&lock);
  return OK;
}

const char *nvmlErrorString(nvmlReturn_t status) { return status ? "an error" : "success"; }

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count) {
  if (ready() != OK) return UNINITIALIZED;
  *count = (unsigned)found;
  return OK;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device) {
  if (ready() != OK) return UNINITIALIZED;
  if ((int)index >= found) return INVALID_ARGUMENT;
  *device = &handles[generation][index];
  return OK;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
  if (ready() != OK) return UNINITIALIZED;
  for (int i = 0; i < found; i++) {
    *device = &handles[generation][i];
    if (!strcmp(gpus[(*device)->gpu].uuid, uuid)) return OK;
  }
  return NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *out, unsigned size) {
  nvmlReturn_t status = check(device, out);
  if (status == OK) snprintf(out, size, "%s", gpus[device->gpu].uuid);
  return status;
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *out, unsigned size) {
  nvmlReturn_t status = check(device, out);
  if (status == OK) snprintf(out, size, "%s", gpus[device->gpu].name);
  return status;
}

nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *mj) {
  nvmlReturn_t status = check(device, mj);
  if (status != OK) return status;
  const Gpu *gpu = &gpus[device->gpu];
  if (gpu->noenergy) return NOT_SUPPORTED;
  us_t t = refreshed(now_us()), since = 0;
  for (int i = 0; i < gpu->resets && gpu->reset_at[i] <= t; i++) since = gpu->reset_at[i];
  *mj = (unsigned long long)(energy_nj(gpu, since, t) / 1000000);
  return OK;
}

/* The mean of the last second, as on Ampere or newer. */
nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned *mw) {
  nvmlReturn_t status = check(device, mw);
  if (status != OK) return status;
  const Gpu *gpu = &gpus[device->gpu];
  if (gpu->nopower) return NOT_SUPPORTED;
  us_t t = refreshed(now_us());
  us_t since = t > US_PER_S ? t - US_PER_S : 0;
  *mw = (unsigned)(t > since ? energy_nj(gpu, since, t) / (t - since) : power_mw(gpu, t));
  return OK;
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values) {
  nvmlReturn_t status = check(device, values);
  if (status != OK) return status;
  const Gpu *gpu = &gpus[device->gpu];
  us_t t = refreshed(now_us());
  for (int i = 0; i < count; i++) {
    int known = values[i].field == FIELD_POWER_INSTANT && values[i].scope == 0;
    values[i].status = known && !gpu->nofields && !gpu->nopower ? OK : NOT_SUPPORTED;
    values[i].value_type = TYPE_UNSIGNED;
    values[i].timestamp = (long long)STAMP_EPOCH_US + t;
    values[i].value.ui = values[i].status == OK ? (unsigned)power_mw(gpu, t) : 0;
  }
  return OK;
}

static nvmlReturn_t running(nvmlDevice_t device, int graphics, unsigned *count,
                            nvmlProcessInfo_t *out) {
  nvmlReturn_t status = check(device, count);
  if (status != OK) return status;
  const Gpu *gpu = &gpus[device->gpu];
  us_t t = now_us();
  unsigned n = 0;
  for (int i = 0; i < gpu->processes; i++) {
    const Process *process = &gpu->process[i];
    if (process->graphics != graphics || t < process->on || t >= process->off) continue;
    if (out && n < *count) {
      out[n] = (nvmlProcessInfo_t){.pid = process->pid, .bytes = process->bytes,
                                   .gpu_instance = UINT32_MAX, .compute_instance = UINT32_MAX};
    }
    n++;
  }
  status = n > *count ? INSUFFICIENT_SIZE : OK;
  *count = n;
  return status;
}

#ifndef NO_COMPUTE_LIST
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned *count,
                                                     nvmlProcessInfo_t *out) {
  return running(device, 0, count, out);
}
#endif

#ifndef NO_GRAPHICS_LIST
nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned *count,
                                                      nvmlProcessInfo_t *out) {
  return running(device, 1, count, out);
}
#endif

/* One sample per busy process every 200 ms; the last 10 s are kept. As drivers may, it pads what it
 * has with a stale sample and an impossible one. */
nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device,
                                             nvmlProcessUtilizationSample_t *out, unsigned *count,
                                             unsigned long long last) {
  nvmlReturn_t status = check(device, count);
  if (status != OK) return status;
  const Gpu *gpu = &gpus[device->gpu];
  if (gpu->mig) return NOT_SUPPORTED;
  unsigned room = SAMPLES_KEPT * MAX_PROCESSES + 2, n = 0;
  if (!out || *count < room) {
    *count = room;
    return INSUFFICIENT_SIZE;
  }
  us_t newest = now_us() / SAMPLE_PERIOD_US;
  us_t oldest = newest < SAMPLES_KEPT ? 1 : newest - SAMPLES_KEPT + 1;
  for (us_t k = oldest; k <= newest; k++) {
    unsigned long long stamp = STAMP_EPOCH_US + (unsigned long long)(k * SAMPLE_PERIOD_US);
    for (int i = 0; i < gpu->processes && stamp > last; i++) {
      const Process *process = &gpu->process[i];
      us_t t = k * SAMPLE_PERIOD_US;
      if (!process->sm || t < process->on || t >= process->off) continue;
      out[n++] = (nvmlProcessUtilizationSample_t){
          .pid = process->pid, .stamp = stamp, .sm = process->sm};
    }
  }
  if (!n) return NOT_FOUND;
  unsigned pid = out[0].pid;
  out[n++] = (nvmlProcessUtilizationSample_t){.pid = pid, .stamp = last, .sm = 99};
  out[n++] = (nvmlProcessUtilizationSample_t){.pid = pid, .stamp = last + 1, .sm = UINT32_MAX};
  *count = n;
  return OK;
}
