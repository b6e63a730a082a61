/* Before a process changes anything under TORTURE_FOLDER it asks whoever listens at TORTURE_SOCKET, and waits for one letter: g, go on;
   n, there is no space left; x, exit here. It is loaded into every process of a run (LD_PRELOAD), so that C++ and Rust are seen too. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int refused(const char *operation, const char *path) {
    const char *folder = getenv("TORTURE_FOLDER"), *place = getenv("TORTURE_SOCKET");
    if (!folder || !place || strncmp(path, folder, strlen(folder))) return 0;
    int before = errno, asked = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, place, sizeof(address.sun_path) - 1);
    char said[PATH_MAX + 32], answer = 'g';
    if (asked >= 0 && !connect(asked, (struct sockaddr *)&address, sizeof(address))) {
        int length = snprintf(said, sizeof(said), "%s\t%s\n", operation, path);
        if (send(asked, said, length, MSG_NOSIGNAL) == length) while (recv(asked, &answer, 1, 0) < 0 && errno == EINTR);
    }
    if (asked >= 0) close(asked);
    if (answer == 'x') _exit(70);
    errno = answer == 'n' ? ENOSPC : before;
    return answer == 'n';
}

static int refused_at(const char *operation, int folder, const char *path) {
    char link[64], whole[PATH_MAX * 2];
    ssize_t length = 0;
    if (path && path[0] == '/') return refused(operation, path);
    if (folder == AT_FDCWD) {
        if (!getcwd(whole, PATH_MAX)) return 0;
        length = strlen(whole);
    } else {
        snprintf(link, sizeof(link), "/proc/self/fd/%d", folder);
        if ((length = readlink(link, whole, PATH_MAX)) <= 0) return 0;
    }
    whole[length] = 0;
    if (path) snprintf(whole + length, PATH_MAX, "/%s", path);
    return refused(operation, whole);
}

static int changes(int flags) { return (flags & O_ACCMODE) != O_RDONLY && flags & (O_CREAT | O_TRUNC); }

#define OPEN(name, ...)                                                     \
    va_list rest; va_start(rest, flags);                                    \
    int mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, int) : 0;     \
    va_end(rest);                                                           \
    return REAL(name)(__VA_ARGS__, flags, mode)

int open(const char *path, int flags, ...) { if (changes(flags) && refused_at("open", AT_FDCWD, path)) return -1; OPEN(open, path); }
int open64(const char *path, int flags, ...) { if (changes(flags) && refused_at("open", AT_FDCWD, path)) return -1; OPEN(open64, path); }
int openat(int at, const char *path, int flags, ...) { if (changes(flags) && refused_at("open", at, path)) return -1; OPEN(openat, at, path); }
int openat64(int at, const char *path, int flags, ...) { if (changes(flags) && refused_at("open", at, path)) return -1; OPEN(openat64, at, path); }

#define CHANGE(name, operation, at, path, parameters, arguments) \
    int name parameters { return refused_at(operation, at, path) ? -1 : REAL(name) arguments; }
#define WRITE(name, parameters, arguments) \
    ssize_t name parameters { return refused_at("write", file, NULL) ? -1 : REAL(name) arguments; }

CHANGE(rename, "rename", AT_FDCWD, to, (const char *from, const char *to), (from, to))
CHANGE(renameat, "rename", at, to, (int from_at, const char *from, int at, const char *to), (from_at, from, at, to))
CHANGE(unlink, "unlink", AT_FDCWD, path, (const char *path), (path))
CHANGE(unlinkat, "unlink", at, path, (int at, const char *path, int flags), (at, path, flags))
CHANGE(rmdir, "rmdir", AT_FDCWD, path, (const char *path), (path))
CHANGE(mkdir, "mkdir", AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
CHANGE(mkdirat, "mkdir", at, path, (int at, const char *path, mode_t mode), (at, path, mode))
CHANGE(ftruncate, "truncate", file, NULL, (int file, off_t length), (file, length))
CHANGE(ftruncate64, "truncate", file, NULL, (int file, off64_t length), (file, length))
WRITE(write, (int file, const void *data, size_t length), (file, data, length))
WRITE(writev, (int file, const struct iovec *data, int count), (file, data, count))
WRITE(pwrite, (int file, const void *data, size_t length, off_t at), (file, data, length, at))
WRITE(pwrite64, (int file, const void *data, size_t length, off64_t at), (file, data, length, at))
