/* The fake NVML's script and clock: see fake_nvml.h. */
#define _GNU_SOURCE
#include "fake_nvml.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

Gpu gpus[MAX_GPUS];
us_t reload_at[MAX_RELOADS];
int reloads;

static struct {
  char call[48];
  Span when;
  double latency_s;
} slow[MAX_SLOW];
static int slows;
static us_t refresh_us = 100000;
/* The environment is read once: what the fake costs is charged to the process that it serves. */
static volatile us_t *clock_page;
static long long origin_ns;

_Noreturn void die(const char *why) {
  fprintf(stderr, "fake_nvml: not understood: %s\n", why);
  abort();
}

us_t default_refresh_us(void) { return refresh_us; }

us_t inside(const Span *span, us_t t) { return span->on <= t && t < span->off; }

static us_t us(double seconds) { return (us_t)(seconds * US_PER_S + (seconds < 0 ? -0.5 : 0.5)); }

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

us_t now_us(void) {
  if (clock_page) return *clock_page;
  struct timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return (ts.tv_sec * 1000000000ll + ts.tv_nsec - origin_ns) / 1000;
}

int64_t value_at(const Steps *steps, us_t t) {
  int64_t value = 0;
  for (int i = 0; i < steps->count && steps->at[i] <= t; i++) value = steps->value[i];
  return value;
}

int64_t integral(const Steps *steps, us_t from, us_t to) {
  int64_t sum = 0;
  for (int i = 0; i < steps->count; i++) {
    us_t end = i + 1 < steps->count ? steps->at[i + 1] : NEVER;
    us_t start = steps->at[i] > from ? steps->at[i] : from;
    if (end > to) end = to;
    if (end > start) sum += steps->value[i] * (end - start);
  }
  return sum;
}

static int load_gpu(Gpu *gpu, const char *line) {
  char name[96], uuid[80];
  if (sscanf(line, "%*s %*d %95s %79s", name, uuid) != 2) return 0;
  gpu->used = 1;
  strcpy(gpu->uuid, uuid);
  strcpy(gpu->name, name);
  for (char *c = gpu->name; (c = strchr(c, '_')) != NULL;) *c = ' ';
  gpu->noenergy = strstr(line, " noenergy") != NULL;
  gpu->nopower = strstr(line, " nopower") != NULL;
  gpu->nofields = strstr(line, " nofields") != NULL;
  gpu->noinstant = strstr(line, " noinstant") != NULL;
  gpu->mig = strstr(line, " mig") != NULL;
  gpu->gpm = strstr(line, " gpm") != NULL;
  return 1;
}

static int load_process(Gpu *gpu, const char *line, int graphics) {
  Process process = {.graphics = graphics, .instance = WHOLE_BOARD};
  double on, off;
  int read = sscanf(line, "%*s %*d %u %llu %lf %lf %u %d", &process.pid, &process.bytes, &on,
                    &off, &process.sm, &process.instance);
  if (read < 5 || gpu->processes == MAX_PROCESSES) return 0;
  process.on = us(on);
  process.off = us(off);
  gpu->process[gpu->processes++] = process;
  return 1;
}

static int load_instance(Gpu *gpu, const char *line) {
  Instance *instance = &gpu->instance[gpu->instances];
  if (gpu->instances == MAX_INSTANCES) return 0;
  if (sscanf(line, "%*s %*d %d %d %d", &instance->id, &instance->sms, &instance->slices) != 3)
    return 0;
  instance->used = 1;
  gpu->instances++;
  return 1;
}

static int add(Steps *steps, double t, double value) {
  if (steps->count == MAX_SEGMENTS) return 0;
  steps->at[steps->count] = us(t);
  steps->value[steps->count++] = (int64_t)value;
  return 1;
}

static int load_activity(Gpu *gpu, const char *line) {
  int id;
  double t, percent;
  if (sscanf(line, "%*s %*d %d %lf %lf", &id, &t, &percent) != 3) return 0;
  for (int i = 0; i < gpu->instances; i++) {
    if (gpu->instance[i].id == id) return add(&gpu->instance[i].activity, t, percent);
  }
  return 0;
}

/* Lines of one or two numbers, and of a span. */
static int load_numbers(Gpu *gpu, const char *word, const char *line) {
  double a = 0, b = 0, c = 0;
  int read = sscanf(line, "%*s %*d %lf %lf %lf", &a, &b, &c);
  const struct {
    const char *word;
    Span *span;
  } spans[] = {{"lost", &gpu->lost}, {"present", &gpu->present}, {"bump", &gpu->bump},
               {"stuck", &gpu->stuck}, {"garbage", &gpu->garbage}};
  for (unsigned i = 0; i < sizeof spans / sizeof *spans; i++) {
    if (strcmp(word, spans[i].word) || read < 2) continue;
    *spans[i].span = (Span){us(a), us(b)};
    if (spans[i].span == &gpu->bump) gpu->bump_mj = (int64_t)c;
    return spans[i].span != &gpu->bump || read == 3;
  }
  if (!strcmp(word, "seg") && read == 2) return add(&gpu->power, a, b);
  if (!strcmp(word, "module") && read == 2) return add(&gpu->module, a, b);
  if (!strcmp(word, "duty") && read == 2) {
    gpu->duty_window = us(a);
    gpu->duty_period = us(b);
  } else if (!strcmp(word, "refresh") && read == 1) {
    gpu->refresh = us(a);
  } else if (!strcmp(word, "lag") && read == 1) {
    gpu->lag = us(a);
  } else if (!strcmp(word, "absent") && read == 1) {
    gpu->absent = us(a);
  } else if (!strcmp(word, "reset") && read == 1 && gpu->resets < MAX_RESETS) {
    gpu->reset_at[gpu->resets++] = us(a);
  } else {
    return 0;
  }
  return 1;
}

static int load_slow(const char *line) {
  double on, off;
  if (slows == MAX_SLOW || sscanf(line, "%*s %47s %lf %lf %lf", slow[slows].call, &on, &off,
                                  &slow[slows].latency_s) != 4)
    return 0;
  slow[slows++].when = (Span){us(on), us(off)};
  return 1;
}

static int load_line(const char *line) {
  char word[16];
  int index = 0;
  double t = 0;
  if (sscanf(line, "%15s", word) != 1 || word[0] == '#') return 1;
  if (!strcmp(word, "slow")) return load_slow(line);
  if (!strcmp(word, "reload") && sscanf(line, "%*s %lf", &t) == 1 && reloads < MAX_RELOADS) {
    reload_at[reloads++] = us(t);
    return 1;
  }
  if (sscanf(line, "%*s %d", &index) != 1 || index < 0 || index >= MAX_GPUS) return 0;
  Gpu *gpu = &gpus[index];
  if (!strcmp(word, "gpu")) return load_gpu(gpu, line);
  if (!strcmp(word, "compute") || !strcmp(word, "graphics"))
    return load_process(gpu, line, word[0] == 'g');
  if (!strcmp(word, "instance")) return load_instance(gpu, line);
  if (!strcmp(word, "activity")) return load_activity(gpu, line);
  return load_numbers(gpu, word, line);
}

void load(void) {
  const char *script = getenv("FAKE_NVML_SCRIPT"), *period = getenv("FAKE_NVML_PERIOD_MS");
  find_clock();
  char line[512];
  if (period) refresh_us = atoll(period) * 1000;
  for (int i = 0; i < MAX_GPUS; i++) {
    Gpu *gpu = &gpus[i];
    gpu->lost = gpu->bump = gpu->stuck = gpu->garbage = (Span){NEVER, NEVER};
    gpu->present = (Span){INT64_MIN, NEVER};
    gpu->absent = NEVER;
    gpu->refresh = refresh_us;
  }
  FILE *file = script ? fopen(script, "r") : NULL;
  if (!file) die("FAKE_NVML_SCRIPT");
  while (fgets(line, sizeof line, file)) {
    if (!load_line(line)) die(line);
  }
  fclose(file);
}

void dawdle(const char *call) {
  for (int i = 0; i < slows; i++) {
    if (!strstr(call, slow[i].call) || !inside(&slow[i].when, now_us())) continue;
    double s = slow[i].latency_s;
    struct timespec pause = {(time_t)s, (long)((s - (double)(time_t)s) * 1e9)};
    nanosleep(&pause, NULL);
  }
}
